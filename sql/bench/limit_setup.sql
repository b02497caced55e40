-- Rows like those of a drain, for the physical limit beside it: the same
-- columns, indexes and CHECK, no locks and no order.
DROP TABLE IF EXISTS millhand.bench_limit;
CREATE TABLE millhand.bench_limit (LIKE millhand.task INCLUDING ALL);
INSERT INTO millhand.bench_limit (name, position, exclusive)
SELECT 'millhand.noop', n, ARRAY['r' || n * 7919 % 128, 'r' || (n * 104729 + 64) % 128]
  FROM generate_series(1::bigint, 200000) AS n;
ANALYZE millhand.bench_limit;
