-- pgbench: a dispatch of such a row, one a transaction. It stays waiting behind
-- a task that holds `blocked`, so that the fleet stays as it is.
SELECT millhand.dispatch('millhand.noop', '{}', ARRAY['r' || (random() * 10000)::integer], ARRAY['blocked']);
