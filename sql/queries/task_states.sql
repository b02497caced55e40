-- State and progress of some tasks ($1), for those who wait for their ends.
SELECT id, state, millhand.shown(progress)
  FROM millhand.task
 WHERE id = ANY ($1::bigint[])
