-- This many tasks that have been finished for long.
INSERT INTO millhand.task (name, state, position, exclusive, started_at, finished_at)
SELECT 'millhand.noop', 'completed', nextval('millhand.task_position'), ARRAY['r' || n % 128],
       clock_timestamp(), clock_timestamp()
  FROM generate_series(1, $1::bigint) AS n
