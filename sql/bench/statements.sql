-- Statements of workers since the last reset; only where pg_stat_statements is
-- installed. What the bench itself asks is told by its mark.
SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements
 WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND query !~ 'Whether anything is left|pg_stat'
