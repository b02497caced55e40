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
-- the parked task (unpark_behind runs as a later statement, on a fresh
-- snapshot). If another task stands between the two in the line of the
-- resource, that one is the new blocker, and its end will be looked at in the
-- same way. Bringing back too many is harmless: a deep look parks them again.
CREATE OR REPLACE FUNCTION millhand.park(
    candidate bigint, candidate_position bigint, needed_exclusive text[], needed_shared text[], low bigint
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    blocker bigint;
BEGIN
    -- Nothing here waits for a lock: who ends a task may wait for this.
    SELECT p.task_id INTO blocker
      FROM millhand.parked p
     WHERE p.resource = ANY (needed_exclusive) AND p.position < candidate_position
     LIMIT 1;
    IF blocker IS NULL AND needed_shared <> '{}' THEN
        SELECT p.task_id INTO blocker
          FROM millhand.parked p
         WHERE p.exclusive AND p.resource = ANY (needed_shared) AND p.position < candidate_position
         LIMIT 1;
    END IF;
    IF blocker IS NULL THEN
        SELECT t.id INTO blocker
          FROM millhand.task t
         WHERE t.state IN ('waiting', 'running', 'canceling') AND NOT t.parked
           AND t.position >= low AND t.position < candidate_position
           AND (t.exclusive && needed_exclusive OR t.exclusive && needed_shared
                OR t.shared && needed_exclusive)
         LIMIT 1;
    END IF;
    PERFORM FROM millhand.task t
      WHERE t.id = blocker AND t.state <> ALL ('{completed,failed,canceled}')
        FOR SHARE SKIP LOCKED;
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

-- Brings back the parked tasks that are next in the lines of these resources,
-- one that needs it exclusively or all that share it before such a one. Call it
-- in a statement of its own, after that which ended a task with these needs.
CREATE OR REPLACE FUNCTION millhand.unpark_behind(ended_exclusive text[], ended_shared text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    freed text;
    head record;
    next_ids bigint[] := '{}';
BEGIN
    -- The usual case, and worth its own test: nothing is parked at all.
    IF NOT EXISTS (SELECT FROM millhand.parked) THEN
        RETURN;
    END IF;
    FOREACH freed IN ARRAY ended_exclusive || ended_shared LOOP
        SELECT p.exclusive, p.task_id INTO head FROM millhand.parked p
         WHERE p.resource = freed ORDER BY p.position LIMIT 1;
        IF head.exclusive THEN
            next_ids := next_ids || head.task_id;
        ELSIF FOUND THEN
            next_ids := next_ids || ARRAY(
                SELECT p.task_id FROM millhand.parked p
                 WHERE p.resource = freed
                   AND p.position < coalesce((SELECT e.position FROM millhand.parked e
                                               WHERE e.resource = freed AND e.exclusive
                                               ORDER BY e.position LIMIT 1), 9223372036854775807));
        END IF;
    END LOOP;
    IF next_ids = '{}' THEN
        RETURN;
    END IF;
    -- In the order of ids: two who bring back the same tasks must not deadlock.
    PERFORM FROM millhand.task t WHERE t.id = ANY (next_ids) ORDER BY t.id FOR NO KEY UPDATE;
    UPDATE millhand.task SET parked = false WHERE id = ANY (next_ids);
    DELETE FROM millhand.parked p USING millhand.task t
     WHERE t.id = ANY (next_ids) AND p.position = t.position;
END
$$;
