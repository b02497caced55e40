-- The fleet at a glance. Ages are seconds by the database's clock.
SELECT (SELECT max(version) FROM millhand.migration) AS schema_version,
       (SELECT coalesce(jsonb_object_agg(state, n), '{}')
          FROM (SELECT state, count(*) AS n FROM millhand.task GROUP BY state) s) AS tasks,
       (SELECT extract(epoch FROM clock_timestamp() - min(created_at))::float8
          FROM millhand.task WHERE state = 'waiting' AND isfinite(created_at)) AS oldest_waiting,
       count(*) FILTER (WHERE last_heartbeat + ttl > clock_timestamp()) AS workers_online,
       count(*) FILTER (WHERE last_heartbeat + ttl <= clock_timestamp()) AS workers_missing
  FROM millhand.worker
