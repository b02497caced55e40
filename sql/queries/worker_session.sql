-- Settings of a session that is to live for long.
--
-- What role, database or server have set for others does it no harm: nothing ends it
-- while it waits or works, and its transactions are those that the functions were made
-- for. A commit that has been answered must not get lost, or what was started would
-- be started again: `on` at least. Where a policy hides rows, reading fails, because a
-- look that does not see all tasks would break their order. Only what this server's
-- version knows is set. (Not set is default_transaction_read_only: who makes a server
-- read-only does so for maintenance, and is waited for.)
--
-- Its few statements have one good plan each, whatever the table's statistics say at
-- the moment: along the index, in order, and from a few rows to those that belong to
-- them. (After an ANALYZE of a small table, a hash join reads all of an index that has
-- grown a thousandfold since. Two functions that join many rows at a time turn it on
-- again.)
--
-- Keepalives: a worker that vanished without a word must not hold its locks for hours.
SELECT pg_catalog.set_config(s.name, v.value, false)
  FROM (VALUES
       ('statement_timeout', '0'),
       ('lock_timeout', '0'),
       ('transaction_timeout', '0'),
       ('idle_in_transaction_session_timeout', '0'),
       ('idle_session_timeout', '0'),
       ('default_transaction_isolation', 'read committed'),
       ('default_transaction_deferrable', 'off'),
       ('row_security', 'off'),
       ('search_path', 'pg_catalog'),
       ('synchronous_commit',
        CASE WHEN pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) 'remote_apply'
             THEN 'remote_apply' ELSE 'on' END),
       ('enable_seqscan', 'off'),
       ('enable_bitmapscan', 'off'),
       ('enable_sort', 'off'),
       ('enable_hashjoin', 'off'),
       ('enable_mergejoin', 'off'),
       ('plan_cache_mode', 'force_generic_plan'),
       ('jit', 'off'),
       ('tcp_keepalives_idle', '5'),
       ('tcp_keepalives_interval', '5'),
       ('tcp_keepalives_count', '3')
       ) AS v(name, value)
  JOIN pg_catalog.pg_settings AS s ON s.name OPERATOR(pg_catalog.=) v.name
