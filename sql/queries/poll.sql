-- The safety poll of a process ($1): see functions/14_housekeeping.sql. $2 to $4
-- are low, mark and mark_xid as the last poll returned them.
SELECT canceling, lost, waiting, low, mark, mark_xid
  FROM millhand.poll($1::text, $2::bigint, $3::bigint, $4::bigint)
