-- Settings of a worker's session. Its few statements have one good plan each,
-- whatever the table's statistics say at the moment: along the index, in order.
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SET enable_sort = off;
SET plan_cache_mode = force_generic_plan;
SET jit = off;
SET default_transaction_isolation = 'read committed';
-- A worker that vanished without a word must not hold its locks for hours.
SET tcp_keepalives_idle = 5;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 3;
