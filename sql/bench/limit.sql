-- pgbench: one transaction completes one task and claims the next.
BEGIN;
UPDATE millhand.bench_limit SET state = 'completed', owner = NULL, finished_at = clock_timestamp() WHERE id = :task;
UPDATE millhand.bench_limit SET state = 'running', owner = :client_id, started_at = clock_timestamp() WHERE id = (SELECT id FROM millhand.bench_limit WHERE state = 'waiting' AND NOT parked ORDER BY position LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id AS task \gset
END;
