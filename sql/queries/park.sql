-- Parks tasks that are blocked ($1) and tasks for others' handlers ($2); $3 and $4
-- are low and stragglers. Returns how many of each it could park. See functions/11_park.sql.
SELECT millhand.park($1::bigint[], $3::bigint, $4::bigint[]), millhand.set_parked($2::bigint[], true)
