-- Parking: what keeps a look short however many blocked tasks wait.
--
-- A look passes over blocked tasks. Where many of them stand before a free one,
-- every look would pass over the same ones again. So a deep look parks them:
-- a parked task is out of the looks' index, and its needs are in the table
-- parked, where they go on reserving its resources against later tasks.
--
-- It comes back when something before it has ended. What keeps it from being
-- forgotten: it is parked only while some earlier conflicting task, its
-- blocker, is seen incomplete and kept so by a row lock until the parking is
-- committed. Whoever ends the blocker gets the row after that and then sees
-- the parked task, in a later statement, on a fresh snapshot. If another task
-- stands between the two in the line of the resource, that one comes back
-- instead and is the new blocker: whoever brings it back has locked its row, so
-- its end comes after that, and is looked at in the same way.
--
-- A row that cannot be locked at once is left alone, and its line noted in the
-- table freed: the next look tries it again. So nobody who ends a task waits
-- for others, and a cancel, which may stand in a transaction that stays open,
-- only ever notes the lines: it keeps no task but its own from coming back.
-- Bringing back too many is harmless: a deep look parks them again.
CREATE OR REPLACE FUNCTION millhand.park(
    candidate bigint, candidate_position bigint, needed_exclusive text[], needed_shared text[], low bigint
) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    -- The blocker. Nothing here waits for a lock: who ends a task may wait for
    -- this.
    PERFORM FROM millhand.parked p JOIN millhand.task t ON t.id = p.task_id
      WHERE p.resource = ANY (needed_exclusive) AND p.position < candidate_position
        AND t.state <> ALL ('{completed,failed,canceled}')
      LIMIT 1 FOR SHARE OF t SKIP LOCKED;
    IF NOT FOUND AND needed_shared <> '{}' THEN
        PERFORM FROM millhand.parked p JOIN millhand.task t ON t.id = p.task_id
          WHERE p.exclusive AND p.resource = ANY (needed_shared) AND p.position < candidate_position
            AND t.state <> ALL ('{completed,failed,canceled}')
          LIMIT 1 FOR SHARE OF t SKIP LOCKED;
    END IF;
    IF NOT FOUND THEN
        PERFORM FROM millhand.task t
          WHERE t.state IN ('waiting', 'running', 'canceling') AND NOT t.parked
            AND t.position >= low AND t.position < candidate_position
            AND (t.exclusive && needed_exclusive OR t.exclusive && needed_shared
                 OR t.shared && needed_exclusive)
          LIMIT 1 FOR SHARE SKIP LOCKED;
    END IF;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE millhand.task SET parked = true
     WHERE id = (SELECT t.id FROM millhand.task t
                  WHERE t.id = candidate AND t.state <> ALL ('{running,canceling,completed,failed,canceled}')
                    AND t.parked IS FALSE
                    FOR NO KEY UPDATE SKIP LOCKED);
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO millhand.parked (position, resource, exclusive, task_id)
    SELECT candidate_position, r, true, candidate FROM unnest(needed_exclusive) AS r
     UNION ALL
    SELECT candidate_position, r, false, candidate FROM unnest(needed_shared) AS r;
    RETURN true;
END
$$;

-- Notes that the lines of these resources move on, for the next look to bring
-- back who stands first there. Call it in a statement of its own, after that
-- which ended a task with these needs.
--
-- A task that ends while it is parked itself (`was_parked`) may have been taken
-- for the new blocker of others that cannot be seen from here, and a snapshot
-- of the whole transaction shows nothing of late: both note their lines
-- whatever can be seen in them.
CREATE OR REPLACE FUNCTION millhand.note_freed(lines text[], was_parked boolean) RETURNS void
LANGUAGE sql VOLATILE AS $$
    INSERT INTO millhand.freed (resource)
    SELECT r FROM unnest($1) AS r
     WHERE ($2 OR current_setting('transaction_isolation') <> 'read committed'
            OR EXISTS (SELECT FROM millhand.parked p WHERE p.resource = r))
       -- Once a transaction is enough: a thousand cancels, one note.
       AND NOT EXISTS (SELECT FROM millhand.freed f
                        WHERE f.resource = r AND f.xmin = pg_current_xact_id()::xid)
$$;

-- Brings back the parked tasks that are next in the lines of these resources,
-- and of those noted in freed: one that needs it exclusively, or all that share
-- it before such a one. False if somebody kept one of them locked; it is noted
-- then. Null if nothing is parked. Call it in a statement of its own, after that
-- which ended a task with these needs.
CREATE OR REPLACE FUNCTION millhand.unpark_behind(freed text[]) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    lines text[] := coalesce(freed, '{}');
    line text;
    head record;
    next_ids bigint[] := '{}';
    next_lines text[] := '{}';
    line_ids bigint[];
    locked_ids bigint[];
BEGIN
    -- Mostly nothing is parked.
    IF NOT EXISTS (SELECT FROM millhand.parked) THEN
        RETURN NULL;
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM millhand.note_freed(lines, true);
        RETURN false;
    END IF;
    IF EXISTS (SELECT FROM millhand.freed) THEN
        WITH noted AS (
            DELETE FROM millhand.freed
             WHERE (resource, id) IN (SELECT f.resource, f.id FROM millhand.freed f
                                         FOR UPDATE SKIP LOCKED)
            RETURNING resource
        )
        SELECT lines || coalesce(array_agg(DISTINCT resource), '{}') INTO lines FROM noted;
    END IF;
    FOREACH line IN ARRAY lines LOOP
        SELECT p.exclusive, p.task_id INTO head FROM millhand.parked p
         WHERE p.resource = line ORDER BY p.position LIMIT 1;
        CONTINUE WHEN NOT FOUND;
        IF head.exclusive THEN
            line_ids := ARRAY[head.task_id];
        ELSE
            line_ids := ARRAY(
                SELECT p.task_id FROM millhand.parked p
                 WHERE p.resource = line
                   AND p.position < coalesce((SELECT e.position FROM millhand.parked e
                                               WHERE e.resource = line AND e.exclusive
                                               ORDER BY e.position LIMIT 1), 9223372036854775807));
        END IF;
        next_ids := next_ids || line_ids;
        next_lines := next_lines || array_fill(line, ARRAY[cardinality(line_ids)]);
    END LOOP;
    IF next_ids = '{}' THEN
        RETURN true;
    END IF;
    locked_ids := ARRAY(SELECT t.id FROM millhand.task t WHERE t.id = ANY (next_ids)
                           FOR NO KEY UPDATE SKIP LOCKED);
    UPDATE millhand.task SET parked = false WHERE id = ANY (locked_ids) AND parked IS TRUE;
    DELETE FROM millhand.parked p USING millhand.task t
     WHERE t.id = ANY (locked_ids) AND p.position = t.position;
    INSERT INTO millhand.freed (resource)
    SELECT DISTINCT missed.line FROM unnest(next_lines, next_ids) AS missed (line, id)
     WHERE missed.id <> ALL (locked_ids);
    RETURN NOT FOUND;
END
$$;

-- Whether a parked task before this position stands in the way of these needs,
-- in the snapshot of the query that asks (hence STABLE).
CREATE OR REPLACE FUNCTION millhand.is_behind_parked(
    task_position bigint, needed_exclusive text[], needed_shared text[]
) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM millhand.parked p
                    WHERE p.resource = ANY (needed_exclusive) AND p.position < task_position)
           OR EXISTS (SELECT FROM millhand.parked p
                       WHERE p.exclusive AND p.resource = ANY (needed_shared)
                         AND p.position < task_position);
END
$$;
