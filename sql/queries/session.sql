-- Which session this is: its process, and when it began.
SELECT a.pid || ' since ' || a.backend_start
  FROM pg_catalog.pg_stat_activity AS a WHERE a.pid = pg_catalog.pg_backend_pid()
