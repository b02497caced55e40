-- The process and the host of a worker ($1), all workers of the process, and others on
-- the host.
SELECT w.process, w.hostname,
       ARRAY(SELECT o.id FROM millhand.worker o WHERE o.process = w.process),
       ARRAY(SELECT o.id FROM millhand.worker o
              WHERE o.hostname = w.hostname AND o.process <> w.process)
  FROM millhand.worker w WHERE w.id = $1::bigint
