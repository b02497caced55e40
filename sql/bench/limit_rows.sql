-- Rows like those of a drain.
INSERT INTO millhand.bench_limit (name, position, exclusive)
SELECT 'millhand.noop', n, ARRAY['r' || n * 7919 % 128, 'r' || (n * 104729 + 64) % 128]
  FROM generate_series(1::bigint, 200000) AS n;
ANALYZE millhand.bench_limit;
