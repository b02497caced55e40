-- Statements since the last reset, but for what the bench asks to see how far it is, told
-- by its marks; only where pg_stat_statements is installed.
SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements
 WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND query !~ 'Whether anything is left|were ever drawn|have been started|Every worker row|pg_stat'
