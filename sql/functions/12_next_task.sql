-- One turn of a worker, in one round trip and one transaction: ends the task
-- that it ran, if `ended_task` is given, and starts the next one, if `wanted`.
-- `idle_siblings` says that the worker's process has other workers to wake; if
-- it has none, more work is told to other processes from here.
--
-- The bell. One idle worker of each process holds bell_lock in shared mode, so
-- that who dispatches can see that somebody must be woken (ring). The worker
-- hangs the bell first (`hang_bell`) and looks once more afterwards, deep. A dispatch
-- that saw no bell and has not committed yet would then go unnoticed, but it
-- holds dispatching_lock until its end, so an exclusive try for that tells of
-- it, and the look was `inconclusive`.
CREATE OR REPLACE FUNCTION millhand.next_task(
    worker_id bigint, worker_name text, handlers text[], low bigint,
    ended_task bigint, outcome text, task_result jsonb, task_error text, task_log text,
    wanted boolean, idle_siblings boolean, take_bell_down boolean, hang_bell boolean,
    OUT ended_state text,
    OUT task_id bigint, OUT task_name text, OUT task_args jsonb, OUT task_exclusive text[],
    OUT task_shared text[], OUT task_fence bigint, OUT task_attempt integer,
    OUT more boolean, OUT inconclusive boolean, OUT unfinished boolean, OUT bell_hung boolean
)
LANGUAGE plpgsql AS $$
DECLARE
    look_further boolean;
    held_up boolean := false;
BEGIN
    more := false;
    inconclusive := false;
    unfinished := false;
    bell_hung := false;
    IF take_bell_down THEN
        PERFORM pg_advisory_unlock_shared(millhand.bell_lock());
    END IF;
    IF ended_task IS NOT NULL THEN
        -- As in dispatch: whoever hangs a bell before this commits looks again.
        PERFORM pg_advisory_xact_lock_shared(millhand.dispatching_lock());
        ended_state := millhand.finish_task(
            worker_id, ended_task, outcome, task_result, task_error, task_log);
        IF ended_state IS NULL THEN
            RETURN;
        END IF;
    ELSIF wanted THEN
        held_up := NOT millhand.unpark_behind('{}', '{}');
    END IF;
    IF NOT wanted THEN
        -- This worker leaves: what its task kept waiting is for others.
        PERFORM millhand.ring();
        RETURN;
    END IF;
    look_further := idle_siblings OR millhand.bell_hangs();
    SELECT * INTO task_id, task_name, task_args, task_exclusive, task_shared, task_fence,
                  task_attempt, more, inconclusive, unfinished
      FROM millhand.claim_task(worker_id, worker_name, handlers, low, look_further, false);
    inconclusive := inconclusive OR held_up;
    IF task_id IS NULL AND hang_bell THEN
        PERFORM pg_advisory_lock_shared(millhand.bell_lock());
        bell_hung := true;
        inconclusive := NOT pg_try_advisory_lock(millhand.dispatching_lock());
        IF NOT inconclusive THEN
            PERFORM pg_advisory_unlock(millhand.dispatching_lock());
        END IF;
        inconclusive := inconclusive OR NOT millhand.unpark_behind('{}', '{}');
        SELECT c.task_id, c.task_name, c.task_args, c.task_exclusive, c.task_shared, c.task_fence,
               c.task_attempt, c.more, c.inconclusive OR next_task.inconclusive, c.unfinished
          INTO task_id, task_name, task_args, task_exclusive, task_shared, task_fence,
               task_attempt, more, inconclusive, unfinished
          FROM millhand.claim_task(worker_id, worker_name, handlers, low, look_further, true) AS c;
        IF task_id IS NOT NULL THEN
            PERFORM pg_advisory_unlock_shared(millhand.bell_lock());
            bell_hung := false;
        END IF;
    END IF;
    -- Ringing needs a cause of its own, a start or an end; otherwise idle
    -- processes could wake each other for ever over work that none can do.
    IF more AND NOT idle_siblings AND (task_id IS NOT NULL OR ended_task IS NOT NULL) THEN
        PERFORM millhand.ring();
    END IF;
END
$$;
