-- State and progress of some tasks ($1), for those who wait for their ends.
SELECT id, state, progress
  FROM millhand.task
 WHERE id = ANY ($1::bigint[])
