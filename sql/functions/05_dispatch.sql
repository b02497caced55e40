-- Creates a waiting task and returns its id. It is part of the caller's
-- transaction: rolled back, there is no task and no wake-up.
--
-- The place locks make the positions of conflicting tasks follow commit order:
-- who needs a resource that another open dispatch needs too (one of the two
-- exclusively) draws its position after that transaction has ended. So whoever
-- sees a task sees every earlier task that conflicts with it, and the look of a
-- worker (claim_task) can trust any snapshot.
--
-- This is on the caller's time: expressions instead of queries where few
-- resources are named.
CREATE OR REPLACE FUNCTION millhand.dispatch(
    name      text,
    args      jsonb  DEFAULT '{}',
    exclusive text[] DEFAULT '{}',
    shared    text[] DEFAULT '{}'
) RETURNS bigint
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    task_id bigint;
    task_args jsonb := coalesce(dispatch.args, '{}');
    task_exclusive text[] := coalesce(dispatch.exclusive, '{}');
    task_shared text[] := coalesce(dispatch.shared, '{}');
    xid xid8;
BEGIN
    PERFORM millhand.check_task(dispatch.name, task_args, task_exclusive, task_shared);
    task_exclusive := millhand.without(task_exclusive, '{}');
    task_shared := millhand.without(task_shared, task_exclusive);
    -- Whoever has drawn a position has a transaction id by then: see poll.
    xid := pg_current_xact_id();
    -- First of all locks, and before the bell is looked at: see next_task.
    PERFORM pg_advisory_xact_lock_shared(millhand.dispatching_lock());
    PERFORM millhand.lock_places(task_exclusive, task_shared);
    INSERT INTO millhand.task (name, args, exclusive, shared, position)
    VALUES (dispatch.name, task_args, task_exclusive, task_shared, nextval('millhand.task_position'))
    RETURNING id INTO task_id;
    PERFORM millhand.ring();
    RETURN task_id;
END
$$;
