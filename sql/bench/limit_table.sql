-- A table like that of tasks, for the physical limit: the same columns, indexes
-- and CHECK, no locks and no order.
DROP TABLE IF EXISTS millhand.bench_limit;
CREATE TABLE millhand.bench_limit (LIKE millhand.task INCLUDING ALL);
