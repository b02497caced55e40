-- One turn of several workers of a process, whose locks are not in the database: in
-- one transaction it ends the tasks that they ran (`ended`, by the workers
-- `ended_by`) and starts others (`started`, for the workers `started_by`).
--
-- Returns a row for each task that it ended ('ended') or started ('started'), and
-- for each whose row somebody keeps locked, such as a cancel in a transaction that
-- stays open ('held up'): one like that keeps nobody but its own worker waiting. A
-- task without a row was not the worker's any more, or not waiting any more.
--
-- Who calls it chose what to start from one look (queries/look.sql), in which each
-- incomplete task before a chosen one reserved all its resources, except for those
-- that are `ended` here. Positions of conflicting tasks follow commit order
-- (dispatch), so that look showed every earlier task that conflicts with a chosen
-- one; those that it showed as final stay final. So nothing is started unless all
-- that is to be ended here did end, and then each start only has to make sure that
-- the task is still waiting.
--
-- Rows are changed where they were locked, which costs no second way through an index.
-- One that somebody changed in that moment is elsewhere, and is not touched: it counts
-- as held up, or as not waiting any more.
CREATE OR REPLACE FUNCTION millhand.joint_turn(
    ended bigint[], ended_by bigint[], outcomes text[], results jsonb[], errors text[], logs text[],
    log_sizes bigint[], progresses jsonb[], started bigint[], started_by bigint[]
) RETURNS TABLE (
    task_id bigint, what text, task_name text, task_args jsonb, task_fence bigint,
    task_attempt integer, task_exclusive text[], task_shared text[]
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    n_ended integer := 0;
BEGIN
    -- Whoever settles one of these workers waits for the end of this, and then finds
    -- all that it did; after that it does nothing for that worker.
    PERFORM FROM millhand.worker WHERE id = ANY (ended_by || started_by) FOR KEY SHARE;
    IF ended <> '{}' THEN
        -- As finish_task.
        RETURN QUERY
            UPDATE millhand.task t
               SET state = CASE t.state WHEN 'canceling' THEN 'canceled' ELSE e.outcome END,
                   result = CASE t.state WHEN 'canceling' THEN NULL ELSE e.result END,
                   error = CASE t.state WHEN 'canceling' THEN NULL ELSE e.error END,
                   log = e.log, log_size = e.log_size, progress = coalesce(e.progress, t.progress),
                   owner = NULL, finished_at = clock_timestamp()
              FROM (SELECT own.ctid AS place, given.*
                      FROM unnest(ended, ended_by, outcomes, results, errors, logs,
                                  log_sizes, progresses)
                           AS given (task, worker, outcome, result, error, log, log_size, progress)
                      JOIN millhand.task own
                        ON own.id = given.task AND own.owner IS NOT DISTINCT FROM given.worker
                       FOR NO KEY UPDATE OF own SKIP LOCKED) AS e
             WHERE t.ctid = e.place
            RETURNING t.id, 'ended', NULL::text, NULL::jsonb, NULL::bigint, NULL::integer,
                      NULL::text[], NULL::text[];
        GET DIAGNOSTICS n_ended = ROW_COUNT;
        IF n_ended > 0 AND EXISTS (SELECT FROM millhand.parked) THEN
            PERFORM millhand.unpark_behind(ARRAY(
                SELECT DISTINCT n.resource FROM millhand.task t
                 CROSS JOIN LATERAL millhand.needs(t.exclusive, t.shared) AS n
                 WHERE t.id = ANY (ended) AND t.owner IS NULL));
        END IF;
        IF n_ended < cardinality(ended) THEN
            RETURN QUERY
                SELECT t.id, 'held up', NULL::text, NULL::jsonb, NULL::bigint, NULL::integer,
                       NULL::text[], NULL::text[]
                  FROM unnest(ended, ended_by) AS given (task, worker)
                  JOIN millhand.task t
                    ON t.id = given.task AND t.owner IS NOT DISTINCT FROM given.worker;
            RETURN;
        END IF;
    END IF;
    IF started <> '{}' THEN
        RETURN QUERY
            UPDATE millhand.task t
               SET state = 'running', owner = s.worker, worker = s.name,
                   fence = nextval('millhand.task_fence'), attempt = t.attempt + 1,
                   started_at = clock_timestamp()
              FROM (SELECT free.ctid AS place, w.id AS worker, w.name
                      FROM unnest(started, started_by) AS given (task, worker)
                      JOIN millhand.worker w ON w.id = given.worker
                      JOIN millhand.task free ON free.id = given.task
                       AND free.parked IS FALSE
                       AND free.state <> ALL ('{running,canceling,completed,failed,canceled}')
                       FOR NO KEY UPDATE OF free SKIP LOCKED) AS s
             WHERE t.ctid = s.place
            RETURNING t.id, 'started', t.name, t.args, t.fence, t.attempt, t.exclusive, t.shared;
    END IF;
END
$$;

-- Brings back what is parked and can come into sight again without the end of a
-- task: see unpark_behind and call_back.
CREATE OR REPLACE FUNCTION millhand.bring_back(handlers text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM millhand.unpark_behind('{}');
    PERFORM millhand.call_back(handlers);
END
$$;
