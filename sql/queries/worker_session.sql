-- Settings of a worker's session. Its few statements have one good plan each,
-- whatever the table's statistics say at the moment: along the index, in order, and
-- from a few rows to those that belong to them. (After an ANALYZE of a small table,
-- a hash join reads all of an index that has grown a thousandfold since. Two functions
-- that join many rows at a time turn it on again.)
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SET enable_sort = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET plan_cache_mode = force_generic_plan;
SET jit = off;
SET default_transaction_isolation = 'read committed';
-- A worker that vanished without a word must not hold its locks for hours.
SET tcp_keepalives_idle = 5;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 3;
SELECT millhand.begin_session();
