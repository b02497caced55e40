-- The tables. Outsiders read these names: schema millhand, tables task and
-- worker, and their columns.

CREATE SEQUENCE millhand.task_position;
COMMENT ON SEQUENCE millhand.task_position IS
    'Order of waiting tasks; drawn under the dispatch locks of the task''s resources.';

CREATE SEQUENCE millhand.task_fence;
COMMENT ON SEQUENCE millhand.task_fence IS
    'Fencing tokens: each start of a task draws a higher one.';

-- One row per worker thread and start. It lives from registration until the
-- worker leaves or its tasks have been swept.
CREATE TABLE millhand.worker (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name           text NOT NULL,
    type           text NOT NULL,
    process        text NOT NULL,
    hostname       text NOT NULL,
    pid            integer NOT NULL,
    started_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_heartbeat timestamptz NOT NULL DEFAULT clock_timestamp(),
    ttl            interval NOT NULL,
    CONSTRAINT worker_ttl_positive CHECK (ttl > interval '0')
)
-- Heartbeats rewrite every row each ttl/3; spare room keeps them on one page.
WITH (fillfactor = 50);
COMMENT ON COLUMN millhand.worker.process IS
    'Drawn at each start of a worker process; the workers of one process share it.';

-- What the columns of a task say together. One function instead of a CHECK for
-- each rule, and a statement for each state: Postgres parses the stored text of
-- every CHECK at every statement, and makes each expression ready that is met.
-- Six CHECKs cost a fifth of a task's whole life.
CREATE FUNCTION millhand.is_consistent(
    state text, task_position bigint, owner bigint, started_at timestamptz, finished_at timestamptz
) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    CASE state
        WHEN 'waiting' THEN
            RETURN task_position IS NOT NULL AND owner IS NULL AND finished_at IS NULL;
        WHEN 'running', 'canceling' THEN
            RETURN task_position IS NOT NULL AND owner IS NOT NULL AND started_at IS NOT NULL
                   AND finished_at IS NULL;
        WHEN 'completed', 'failed' THEN
            RETURN owner IS NULL AND started_at IS NOT NULL AND finished_at IS NOT NULL;
        WHEN 'canceled' THEN
            RETURN owner IS NULL AND finished_at IS NOT NULL;
        WHEN 'scheduled' THEN
            RETURN owner IS NULL AND finished_at IS NULL;
        ELSE
            RETURN false;
    END CASE;
END
$$;

CREATE TABLE millhand.task (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL,
    state       text NOT NULL DEFAULT 'waiting',
    position    bigint,
    parked      boolean NOT NULL DEFAULT false,
    exclusive   text[] NOT NULL DEFAULT '{}',
    shared      text[] NOT NULL DEFAULT '{}',
    args        jsonb NOT NULL DEFAULT '{}',
    owner       bigint,
    worker      text,
    fence       bigint,
    attempt     integer NOT NULL DEFAULT 0,
    progress    jsonb,
    result      jsonb,
    error       text,
    log         text,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at  timestamptz,
    finished_at timestamptz,
    CONSTRAINT task_consistent CHECK
        (millhand.is_consistent(state, position, owner, started_at, finished_at))
)
-- Finished rows pile up behind the few live ones, so a share of the whole
-- table says nothing about when to clean: count dead rows instead.
WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
      autovacuum_vacuum_cost_delay = 0);
COMMENT ON COLUMN millhand.task.parked IS
    'Known to wait behind an earlier task; looks skip it until that one has ended.';
COMMENT ON COLUMN millhand.task.owner IS 'The worker row that may end the task.';
COMMENT ON COLUMN millhand.task.worker IS 'Name of the worker that ran it last.';

-- What is not final and not parked, in order: the look for the next task.
CREATE INDEX task_incomplete ON millhand.task (position)
    WHERE state IN ('waiting', 'running', 'canceling') AND NOT parked;

-- What parked tasks need: they keep reserving it, and this is how later tasks
-- and those that end find them. One that waits for a worker with its handler
-- has a row for that, too, with an empty resource. See functions/11_park.sql.
CREATE TABLE millhand.parked (
    position  bigint NOT NULL,
    resource  text NOT NULL,
    exclusive boolean NOT NULL,
    task_id   bigint NOT NULL,
    handler   text,
    PRIMARY KEY (position, resource)
)
WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
      autovacuum_vacuum_cost_delay = 0);
CREATE INDEX parked_line ON millhand.parked (resource, position);
CREATE INDEX parked_exclusive_line ON millhand.parked (resource, position) WHERE exclusive;
CREATE INDEX parked_handler ON millhand.parked (handler, position) WHERE handler IS NOT NULL;

-- Resources whose lines have moved on while nobody could bring back who stands
-- first there: a note for the next look.
CREATE TABLE millhand.freed (
    resource text NOT NULL,
    id       bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (resource, id)
)
WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
      autovacuum_vacuum_cost_delay = 0);

-- What a worker owns: to sweep it, and to find the tasks it should cancel.
CREATE INDEX task_owned ON millhand.task (owner) WHERE owner IS NOT NULL;
