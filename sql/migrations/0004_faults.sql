-- What was found to break under faults.

-- Nobody is declared dead by a clock.
ALTER TABLE millhand.worker ADD COLUMN heartbeat bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN millhand.worker.heartbeat IS
    'Counts renewals of this row. Who sweeps has watched it stand still for a whole ttl.';
COMMENT ON COLUMN millhand.worker.last_heartbeat IS
    'When the row was renewed last, by the database''s clock; for people to read, nothing is decided by it.';

-- On which timeline of the server tokens were last drawn: see functions/17_begin_session.sql.
CREATE TABLE millhand.server (timeline bigint);
INSERT INTO millhand.server VALUES (NULL);

-- What has other parameters, or returns more.
DROP FUNCTION IF EXISTS millhand.settle_worker(bigint, text, boolean, bigint);
DROP FUNCTION IF EXISTS millhand.poll(text, bigint, bigint[], bigint, bigint);

-- Whoever copies or repairs the sequences of a database finds those that belong to
-- columns.
ALTER SEQUENCE millhand.task_position OWNED BY millhand.task.position;
ALTER SEQUENCE millhand.task_fence OWNED BY millhand.task.fence;
