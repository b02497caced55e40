-- What became of each task of a run, in order; times in seconds since the first
-- dispatch.
SELECT exclusive, shared,
       extract(epoch FROM created_at - min(created_at) OVER ())::float8 AS created,
       extract(epoch FROM started_at - min(created_at) OVER ())::float8 AS started,
       extract(epoch FROM finished_at - min(created_at) OVER ())::float8 AS finished
  FROM millhand.task
 WHERE state = 'completed'
 ORDER BY position
