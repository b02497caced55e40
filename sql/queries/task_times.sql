-- For each task name: how many started and ended, how long they waited and how
-- long they ran, in seconds, at the median and for the slowest twentieth.
SELECT name, count(*) AS count,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY waited) AS wait_p50,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY waited) AS wait_p95,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY ran) AS run_p50,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY ran) AS run_p95
  FROM (SELECT name, extract(epoch FROM started_at - created_at)::float8 AS waited,
               extract(epoch FROM finished_at - started_at)::float8 AS ran
          FROM millhand.task
         WHERE started_at IS NOT NULL AND finished_at IS NOT NULL) AS task
 GROUP BY name ORDER BY name
