-- What was found to break under faults.
--
-- Workers are at it meanwhile, so nothing waits for long behind a lock that this waits
-- for (migrate.rs), and the table of heartbeats comes last.

-- Who copies or repairs the sequences of a database finds those that belong to columns.
ALTER SEQUENCE millhand.task_position OWNED BY millhand.task.position;
ALTER SEQUENCE millhand.task_fence OWNED BY millhand.task.fence;

-- On which timeline of the server tokens were last drawn: see functions/17_begin_session.sql.
CREATE TABLE millhand.server (timeline bigint);
DO $$
BEGIN
    INSERT INTO millhand.server
    VALUES (('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint);
EXCEPTION WHEN insufficient_privilege OR feature_not_supported THEN
    INSERT INTO millhand.server VALUES (NULL);
END
$$;

-- What has other parameters, or returns more.
DROP FUNCTION IF EXISTS millhand.settle_worker(bigint, text, boolean, bigint);
DROP FUNCTION IF EXISTS millhand.poll(text, bigint, bigint[], bigint, bigint);

-- Nobody is declared dead by a clock.
ALTER TABLE millhand.worker ADD COLUMN heartbeat bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN millhand.worker.heartbeat IS
    'Counts renewals of this row. Who sweeps has watched it stand still for a whole ttl.';
COMMENT ON COLUMN millhand.worker.last_heartbeat IS
    'When the row was renewed last, by the database''s clock; for people to read, nothing is decided by it.';
