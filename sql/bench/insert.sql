-- pgbench: the bare INSERT of a task's row, one a transaction.
INSERT INTO millhand.bench_limit (name, position, exclusive) VALUES ('millhand.none', 1, ARRAY['r' || (random() * 127)::integer, 's' || (random() * 127)::integer]);
