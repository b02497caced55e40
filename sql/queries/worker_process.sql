-- The process that a worker ($1) belongs to, and all workers of that.
SELECT w.process, ARRAY(SELECT o.id FROM millhand.worker o WHERE o.process = w.process)
  FROM millhand.worker w WHERE w.id = $1::bigint
