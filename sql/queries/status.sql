-- The fleet at a glance, in one walk over the tasks. Ages are seconds by the database's clock.
SELECT (SELECT max(version) FROM millhand.migration) AS schema_version, t.*, w.*
  FROM (SELECT coalesce(jsonb_object_agg(state, n), '{}') AS tasks,
               coalesce(jsonb_object_agg(state, recent), '{}') AS last_hour,
               extract(epoch FROM clock_timestamp()
                       - min(created) FILTER (WHERE state = 'waiting'))::float8 AS oldest_waiting,
               extract(epoch FROM clock_timestamp()
                       - min(started) FILTER (WHERE state IN ('running', 'canceling')))::float8
                   AS longest_running
          FROM (SELECT state, count(*) AS n,
                       count(*) FILTER (WHERE finished_at > now() - interval '1 hour') AS recent,
                       min(created_at) FILTER (WHERE isfinite(created_at)) AS created,
                       min(started_at) FILTER (WHERE isfinite(started_at)) AS started
                  FROM millhand.task GROUP BY state) s) t,
       (SELECT count(*) FILTER (WHERE last_heartbeat + ttl > clock_timestamp()) AS workers_online,
               count(*) FILTER (WHERE last_heartbeat + ttl <= clock_timestamp()) AS workers_missing
          FROM millhand.worker) w
