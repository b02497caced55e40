-- Ends a task that this worker owns and returns the names of its resources;
-- null if the worker does not own it any more (nothing is written then).
-- Whoever has an owner is running or canceling, by the table's CHECK. The
-- condition on the owner is written so that no index but the primary key can
-- serve it: the others are thick with remains of what this worker ran before.
-- A task that somebody asked to cancel ends `canceled`, however its handler
-- ended. `holds_resources`: the session holds the locks of the task's resources,
-- beside that of the task. `task_progress` is what is not stored yet, if anything.
CREATE OR REPLACE FUNCTION millhand.finish_task(
    worker_id bigint, task_id bigint, outcome text, task_result jsonb, task_error text, task_log text,
    task_log_size bigint, task_progress jsonb, holds_resources boolean
) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    ended record;
    resource text;
    held boolean;
BEGIN
    UPDATE millhand.task
       SET state = CASE state WHEN 'canceling' THEN 'canceled' ELSE outcome END,
           result = CASE state WHEN 'canceling' THEN NULL ELSE task_result END,
           error = CASE state WHEN 'canceling' THEN NULL ELSE task_error END,
           log = task_log, log_size = task_log_size,
           progress = coalesce(task_progress, progress), owner = NULL, finished_at = clock_timestamp()
     WHERE id = task_id AND owner IS NOT DISTINCT FROM worker_id
    RETURNING exclusive, shared INTO ended;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    -- Locks must outlive the commit of the final state, and not by a moment
    -- more. The session holds them; asking again for the transaction is free,
    -- and lets the session let go: Postgres then releases them right after
    -- the commit has become visible.
    -- (An assignment costs a third of a PERFORM, and this is on every turn.)
    held := pg_try_advisory_xact_lock(millhand.task_lock(task_id))
            AND pg_advisory_unlock(millhand.task_lock(task_id));
    IF NOT holds_resources THEN
        RETURN ended.exclusive || ended.shared;
    END IF;
    FOREACH resource IN ARRAY ended.exclusive LOOP
        held := pg_try_advisory_xact_lock(millhand.resource_lock(resource))
                AND pg_advisory_unlock(millhand.resource_lock(resource));
    END LOOP;
    FOREACH resource IN ARRAY ended.shared LOOP
        held := pg_try_advisory_xact_lock_shared(millhand.resource_lock(resource))
                AND pg_advisory_unlock_shared(millhand.resource_lock(resource));
    END LOOP;
    RETURN ended.exclusive || ended.shared;
END
$$;
