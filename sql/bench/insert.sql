-- pgbench: the bare INSERT of a task's row, one a transaction.
INSERT INTO millhand.bench_limit (name, position, exclusive, shared) VALUES ('millhand.noop', 1, ARRAY['r' || (random() * 10000)::integer], ARRAY['blocked']);
