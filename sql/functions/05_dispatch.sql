-- Creates a waiting task and returns its id. It is part of the caller's
-- transaction: rolled back, there is no task and no wake-up.
--
-- The place locks make the positions of conflicting tasks follow commit order:
-- who needs a resource that another open dispatch needs too (one of the two
-- exclusively) draws its position after that transaction has ended. So whoever
-- sees a task sees every earlier task that conflicts with it, and the look of a
-- worker (next_task) can trust any snapshot.
--
-- This is on the caller's time, so the usual call, in order and with two
-- resources at most, goes through as few expressions as possible: each is made
-- ready anew in every transaction, at about the cost of a lock. (Assigning a
-- lock's result costs half of a PERFORM.)
--
-- It runs in the caller's session, whatever stands in its search_path: built-in
-- functions that it calls are named with their schema. (A search_path of the function's
-- own would cost a quarter of a dispatch. Those that are called more seldom have one.)
CREATE OR REPLACE FUNCTION millhand.dispatch(
    name      text,
    args      jsonb  DEFAULT '{}',
    exclusive text[] DEFAULT '{}',
    shared    text[] DEFAULT '{}'
) RETURNS bigint
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    names CONSTANT text[] := millhand.all_names(exclusive, shared);
    n_exclusive CONSTANT integer := pg_catalog.cardinality(exclusive);
    key_1 bigint;
    key_2 bigint;
    locked boolean;
    task_id bigint;
BEGIN
    -- Whoever has drawn a position has a transaction id by then: see poll. And
    -- this is the first of all locks, before the bell is looked at: see next_task.
    locked := pg_catalog.pg_current_xact_id() IS NOT NULL
              AND pg_catalog.pg_advisory_xact_lock_shared(millhand.dispatching_lock()) IS NULL;
    IF millhand.is_plain(name, args, exclusive, shared, names) THEN
        -- As lock_places.
        key_1 := millhand.place_lock(names[1]);
        key_2 := millhand.place_lock(names[2]);
        locked := CASE WHEN n_exclusive > CASE WHEN key_2 < key_1 THEN 1 ELSE 0 END
                       THEN pg_catalog.pg_advisory_xact_lock(least(key_1, key_2)) IS NULL
                       ELSE pg_catalog.pg_advisory_xact_lock_shared(least(key_1, key_2)) IS NULL END;
        IF key_1 <> key_2 THEN
            locked := CASE WHEN n_exclusive > CASE WHEN key_2 < key_1 THEN 0 ELSE 1 END
                           THEN pg_catalog.pg_advisory_xact_lock(greatest(key_1, key_2)) IS NULL
                           ELSE pg_catalog.pg_advisory_xact_lock_shared(greatest(key_1, key_2)) IS NULL END;
        END IF;
    ELSE
        args := coalesce(args, '{}');
        exclusive := coalesce(exclusive, '{}');
        shared := coalesce(shared, '{}');
        PERFORM millhand.check_task(name, args, exclusive, shared);
        exclusive := millhand.without(exclusive, '{}');
        shared := millhand.without(shared, exclusive);
        PERFORM millhand.lock_places(exclusive, shared);
    END IF;
    INSERT INTO millhand.task AS t (name, args, exclusive, shared, position)
    VALUES (name, args, coalesce(exclusive, '{}'), coalesce(shared, '{}'),
            pg_catalog.nextval('millhand.task_position'))
    RETURNING t.id INTO task_id;
    IF millhand.bell_hangs() THEN
        PERFORM pg_catalog.pg_notify('millhand_wakeup', '');
    END IF;
    RETURN task_id;
END
$$;
