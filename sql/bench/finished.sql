-- Figures of a run: how many tasks, and the seconds from the first start to
-- the last end.
SELECT count(*) AS n_tasks,
       coalesce(extract(epoch FROM max(finished_at) - min(started_at)), 0)::float8 AS seconds
  FROM millhand.task WHERE state IN ('completed', 'failed', 'canceled')
