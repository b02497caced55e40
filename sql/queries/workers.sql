-- Every worker row, oldest first, with the task that it runs. A worker is
-- online while its last heartbeat is younger than its ttl, by the database's
-- clock.
SELECT w.id, w.name, w.type, w.process, w.hostname, w.pid, w.started_at, w.last_heartbeat,
       extract(epoch FROM clock_timestamp()
               - CASE WHEN isfinite(w.last_heartbeat) THEN w.last_heartbeat ELSE clock_timestamp() END
              )::float8 AS heartbeat_age,
       w.last_heartbeat + w.ttl > clock_timestamp() AS online, w.auxiliary,
       t.id AS task, t.name AS task_name
  FROM millhand.worker w
  LEFT JOIN millhand.task t ON t.owner = w.id AND t.state IN ('running', 'canceling')
 ORDER BY w.id
