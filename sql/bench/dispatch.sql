-- pgbench: a dispatch of the same row, one a transaction. No worker has a
-- handler for it.
SELECT millhand.dispatch('millhand.none', '{}', ARRAY['r' || (random() * 127)::integer, 's' || (random() * 127)::integer]);
