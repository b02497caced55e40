-- Counters of the server: commits of this database and bytes of WAL; and this session's
-- process, whose parent is the server.
SELECT (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()) AS commits,
       pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint AS wal_bytes,
       pg_backend_pid() AS pid
