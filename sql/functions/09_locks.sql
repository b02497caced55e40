-- Tries the locks of one task for this session: all of them or none.
CREATE OR REPLACE FUNCTION millhand.try_locks(task_id bigint, exclusive text[], shared text[])
RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    resource text;
    n_exclusive integer := 0;
    n_shared integer := 0;
    got boolean;
BEGIN
    -- A try never waits, so the order of the names does not matter.
    got := pg_try_advisory_lock(millhand.task_lock(task_id));
    IF NOT got THEN
        RETURN false;
    END IF;
    FOREACH resource IN ARRAY exclusive LOOP
        got := pg_try_advisory_lock(millhand.resource_lock(resource));
        EXIT WHEN NOT got;
        n_exclusive := n_exclusive + 1;
    END LOOP;
    IF got THEN
        FOREACH resource IN ARRAY shared LOOP
            got := pg_try_advisory_lock_shared(millhand.resource_lock(resource));
            EXIT WHEN NOT got;
            n_shared := n_shared + 1;
        END LOOP;
    END IF;
    IF NOT got THEN
        PERFORM millhand.unlock(task_id, exclusive[:n_exclusive], shared[:n_shared]);
    END IF;
    RETURN got;
END
$$;

-- Releases the locks of one task that this session holds.
CREATE OR REPLACE FUNCTION millhand.unlock(task_id bigint, exclusive text[], shared text[])
RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    resource text;
    held boolean;
BEGIN
    FOREACH resource IN ARRAY exclusive LOOP
        held := pg_advisory_unlock(millhand.resource_lock(resource));
    END LOOP;
    FOREACH resource IN ARRAY shared LOOP
        held := pg_advisory_unlock_shared(millhand.resource_lock(resource));
    END LOOP;
    held := pg_advisory_unlock(millhand.task_lock(task_id));
END
$$;
