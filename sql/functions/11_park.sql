-- Parking: what keeps a look short however many tasks wait that it cannot start.
--
-- A look passes over tasks that are blocked, or that its worker has no handler
-- for. Where many of them stand before a task that it could start, every look
-- would pass over the same ones again. So a deep look parks them: a parked task
-- is out of the looks' index, and its needs are in the table parked, where they
-- go on reserving its resources against later tasks.
--
-- A blocked task comes back when something before it has ended. What keeps it
-- from being forgotten: it is parked only while some earlier conflicting task,
-- its blocker, is seen incomplete and kept so by a row lock until the parking is
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
--
-- Who is first in a line is asked for with BETWEEN and by the index's own order:
-- with `=`, Postgres walks along the positions of all lines instead, where its
-- statistics know of one long line only.
--
-- A free task that has no handler here comes back when a worker that has one
-- looks: it waits in the line of its handler.

-- Parks these tasks, of which each waits behind another, and returns how many it
-- could park. Nothing here waits for a lock: who ends a task may wait for this.
CREATE OR REPLACE FUNCTION millhand.park(candidates bigint[], low bigint, stragglers bigint[])
RETURNS integer
LANGUAGE plpgsql SET enable_hashjoin = on AS $$
DECLARE
    ids bigint[];
    near bigint[];
    far bigint[];
    locked bigint[];
BEGIN
    -- Blockers of each, by their positions: such as are still there in a moment
    -- and can be locked, and the same for many. So rather the last in line
    -- before all these (near) than the first, which may be ending; or the first
    -- of these, or of those that are parked (far).
    WITH need AS MATERIALIZED (
        SELECT t.id, t.position, n.resource, n.is_exclusive AS exclusive
          FROM millhand.task t
         CROSS JOIN LATERAL millhand.needs(t.exclusive, t.shared) AS n
         WHERE t.id = ANY (candidates)
    ), before AS (
        SELECT n.resource, max(t.task_position) AS last,
               max(t.task_position) FILTER (WHERE n.is_exclusive) AS last_exclusive
          FROM millhand.in_sight(low, stragglers) AS t
         CROSS JOIN LATERAL millhand.needs(t.exclusive, t.shared) AS n
         WHERE t.task_position < (SELECT min(position) FROM need)
         GROUP BY n.resource
    ), head AS (
        SELECT h.resource, min(h.position) AS first,
               min(h.position) FILTER (WHERE h.exclusive) AS first_exclusive
          FROM (SELECT resource, exclusive, position FROM need
                 UNION ALL
                SELECT line.resource, p.exclusive, p.position
                  FROM (SELECT DISTINCT resource FROM need) AS line
                 CROSS JOIN LATERAL ((SELECT p.exclusive, p.position FROM millhand.parked p
                                       WHERE p.resource BETWEEN line.resource AND line.resource
                                       ORDER BY p.resource, p.position LIMIT 1)
                                      UNION ALL
                                     (SELECT p.exclusive, p.position FROM millhand.parked p
                                       WHERE p.resource BETWEEN line.resource AND line.resource
                                         AND p.exclusive
                                       ORDER BY p.resource, p.position LIMIT 1)) AS p) AS h
         GROUP BY h.resource
    ), blocked AS (
        SELECT need.id,
               max(CASE WHEN need.exclusive THEN before.last ELSE before.last_exclusive END) AS near,
               max(first.position) FILTER (WHERE first.position < need.position) AS far
          FROM need
          JOIN head USING (resource)
          LEFT JOIN before USING (resource)
         CROSS JOIN LATERAL
               (SELECT CASE WHEN need.exclusive THEN head.first ELSE head.first_exclusive END)
               AS first (position)
         GROUP BY need.id
    )
    SELECT array_agg(b.id), array_agg(b.near), array_agg(b.far) INTO ids, near, far
      FROM blocked AS b;
    locked := ARRAY(
        SELECT t.position FROM millhand.task t
         WHERE t.id = ANY (ARRAY(
                   SELECT w.id FROM millhand.task w
                    WHERE w.state IN ('waiting', 'running', 'canceling') AND NOT w.parked
                      AND w.position = ANY (near || far)
                    UNION
                   SELECT p.task_id FROM millhand.parked p WHERE p.position = ANY (far)))
           AND t.state <> ALL ('{completed,failed,canceled}')
           FOR SHARE SKIP LOCKED);
    RETURN millhand.set_parked(
        ARRAY(SELECT b.id FROM unnest(ids, near, far) AS b (id, near, far)
               WHERE b.near = ANY (locked) OR b.far = ANY (locked)), false);
END
$$;

-- Parks these tasks, which the worker that met them has no handler for, and returns
-- how many it could park. Others may have a handler and have looked too early to see
-- them there, so this is told like a dispatch.
CREATE OR REPLACE FUNCTION millhand.park_for_others(candidates bigint[]) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    n_parked integer;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(millhand.dispatching_lock());
    n_parked := millhand.set_parked(candidates, true);
    IF n_parked > 0 THEN
        PERFORM millhand.ring();
    END IF;
    RETURN n_parked;
END
$$;

-- Takes waiting tasks out of the looks' index and puts their needs into the
-- table parked, `for_others` with their names as the handlers that they wait
-- for, and returns how many it could take.
CREATE OR REPLACE FUNCTION millhand.set_parked(ids bigint[], for_others boolean) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    n_parked integer;
BEGIN
    WITH moved AS (
        -- (The conditions are written so that only the primary key serves them.)
        UPDATE millhand.task t SET parked = true
         WHERE t.id = ANY (ARRAY(
                   SELECT w.id FROM millhand.task w
                    WHERE w.id = ANY (ids) AND w.parked IS FALSE
                      AND w.state <> ALL ('{running,canceling,completed,failed,canceled}')
                      FOR NO KEY UPDATE SKIP LOCKED))
        RETURNING t.id, t.name, t.position, t.exclusive, t.shared
    ), kept AS (
        INSERT INTO millhand.parked (position, resource, exclusive, task_id, handler)
        SELECT m.position, n.resource, n.is_exclusive, m.id, NULL
          FROM moved m CROSS JOIN LATERAL millhand.needs(m.exclusive, m.shared) AS n
         UNION ALL
        SELECT m.position, '', false, m.id, m.name FROM moved m WHERE for_others
    )
    SELECT count(*) INTO n_parked FROM moved;
    RETURN n_parked;
END
$$;

-- Brings back the first task, if any, that is parked for one of these handlers.
CREATE OR REPLACE FUNCTION millhand.call_back(handlers text[]) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    line record;
    waiter record;
BEGIN
    -- The line first whose head has waited longest.
    FOR line IN
        SELECT name AS handler
          FROM unnest(handlers) AS name
         CROSS JOIN LATERAL (SELECT p.position FROM millhand.parked p
                              WHERE p.handler BETWEEN name AND name
                              ORDER BY p.handler, p.position LIMIT 1) AS head
         ORDER BY head.position
    LOOP
        FOR waiter IN
            SELECT p.task_id, p.position FROM millhand.parked p
             WHERE p.handler BETWEEN line.handler AND line.handler
             ORDER BY p.handler, p.position
        LOOP
            -- Past those that somebody keeps locked, or is about to bring back.
            -- (Joined into the query above, this made it scan all of parked.)
            UPDATE millhand.task SET parked = false
             WHERE id = (SELECT t.id FROM millhand.task t
                          WHERE t.id = waiter.task_id AND t.parked IS TRUE
                            FOR NO KEY UPDATE SKIP LOCKED);
            IF FOUND THEN
                DELETE FROM millhand.parked WHERE position = waiter.position;
                RETURN true;
            END IF;
        END LOOP;
    END LOOP;
    RETURN false;
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
            OR EXISTS (SELECT FROM millhand.parked p WHERE p.resource BETWEEN r AND r))
       -- Once a transaction is enough: a thousand cancels, one note.
       AND NOT EXISTS (SELECT FROM millhand.freed f
                        WHERE f.resource = r AND f.xmin = pg_current_xact_id()::xid)
$$;

-- Brings back the parked tasks that are next in the lines of these resources,
-- and of those noted in freed, which it adds to `lines`: one that needs it
-- exclusively, or all that share it before such a one. `held_up` says that
-- somebody kept one of them locked; it is noted then. Null if nothing is parked.
-- Call it in a statement of its own, after that which ended a task with these
-- needs.
CREATE OR REPLACE FUNCTION millhand.unpark_behind(INOUT lines text[], OUT held_up boolean)
LANGUAGE plpgsql AS $$
DECLARE
    line text;
    head record;
    next_ids bigint[] := '{}';
    next_lines text[] := '{}';
    line_ids bigint[];
    locked_ids bigint[];
BEGIN
    -- Mostly nothing is parked.
    IF NOT EXISTS (SELECT FROM millhand.parked) THEN
        RETURN;
    END IF;
    held_up := false;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM millhand.note_freed(lines, true);
        held_up := true;
        RETURN;
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
         WHERE p.resource BETWEEN line AND line ORDER BY p.resource, p.position LIMIT 1;
        CONTINUE WHEN NOT FOUND;
        IF head.exclusive THEN
            line_ids := ARRAY[head.task_id];
        ELSE
            line_ids := ARRAY(
                SELECT p.task_id FROM millhand.parked p
                 WHERE p.resource BETWEEN line AND line
                   AND p.position < coalesce((SELECT e.position FROM millhand.parked e
                                               WHERE e.resource BETWEEN line AND line AND e.exclusive
                                               ORDER BY e.resource, e.position LIMIT 1),
                                             9223372036854775807)
                 ORDER BY p.resource, p.position);
        END IF;
        next_ids := next_ids || line_ids;
        next_lines := next_lines || array_fill(line, ARRAY[cardinality(line_ids)]);
    END LOOP;
    IF next_ids = '{}' THEN
        RETURN;
    END IF;
    locked_ids := ARRAY(SELECT t.id FROM millhand.task t WHERE t.id = ANY (next_ids)
                           FOR NO KEY UPDATE SKIP LOCKED);
    UPDATE millhand.task SET parked = false WHERE id = ANY (locked_ids) AND parked IS TRUE;
    DELETE FROM millhand.parked p USING millhand.task t
     WHERE t.id = ANY (locked_ids) AND p.position = t.position;
    INSERT INTO millhand.freed (resource)
    SELECT DISTINCT missed.line FROM unnest(next_lines, next_ids) AS missed (line, id)
     WHERE missed.id <> ALL (locked_ids);
    held_up := FOUND;
END
$$;
