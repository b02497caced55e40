-- The safety poll of a process ($1): see functions/14_housekeeping.sql. $2 to $5
-- are low, stragglers, mark and mark_xid as the last poll returned them.
SELECT canceling, lost, waiting, owned, owned_by, workers, heartbeats, ttls,
       low, stragglers, mark, mark_xid
  FROM millhand.poll($1::text, $2::bigint, $3::bigint[], $4::bigint, $5::bigint)
