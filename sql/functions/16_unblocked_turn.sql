-- Worker type pulpcore: the older design, kept to be compared with the others.
--
-- One worker at a time walks all incomplete tasks in order and marks those that
-- nothing earlier blocks (unblock). Workers take only what is marked
-- (unblocked_turn), and hold one lock meanwhile, that of the task: its resources
-- are reserved by the rows alone.

-- Marks the waiting tasks that no earlier incomplete task is in the way of.
-- `n_own` and `n_others`: how many it marked, with one of these handlers and without.
-- `is_busy`: nothing was done, because another worker is at it just now.
-- `held_up`: somebody keeps the row of one locked that is to be marked, or to come back.
--
-- Marking is told like a dispatch: who looks meanwhile, but does not walk itself, looks
-- again.
--
-- Why a marked task may start, whenever somebody comes to take it, is said in
-- next_task: one query reads the incomplete tasks in one snapshot, and each of
-- them, whatever its state, reserves all its resources. Those that were parked, by
-- workers of another type, do so through the table parked until they are back.
--
-- It is made for thousands of tasks: each is read once, who comes first in the line of
-- a resource is found by hashing, and only those are looked at further.
CREATE OR REPLACE FUNCTION millhand.unblock(
    handlers text[], low bigint, stragglers bigint[],
    OUT is_busy boolean, OUT n_own bigint, OUT n_others bigint, OUT held_up boolean
)
LANGUAGE plpgsql SET enable_hashjoin = on AS $$
DECLARE
    has_parked boolean := false;
BEGIN
    is_busy := NOT pg_try_advisory_xact_lock(millhand.unblocking_lock());
    IF is_busy THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock_shared(millhand.dispatching_lock());
    IF EXISTS (SELECT FROM millhand.parked) THEN
        WITH back AS (
            UPDATE millhand.task SET parked = false
             WHERE id = ANY (ARRAY(
                       SELECT t.id FROM millhand.task t
                        WHERE t.id = ANY (ARRAY(SELECT p.task_id FROM millhand.parked p)) AND t.parked
                          FOR NO KEY UPDATE SKIP LOCKED))
            RETURNING position
        )
        DELETE FROM millhand.parked p USING back WHERE p.position = back.position;
        has_parked := EXISTS (SELECT FROM millhand.parked);
    END IF;
    WITH incomplete AS MATERIALIZED (
        SELECT s.id, s.task_position, s.state, s.exclusive, s.shared
          FROM millhand.in_sight(low, stragglers) AS s
    ), sharer AS MATERIALIZED (
        SELECT i.task_position, unnest(i.shared) AS resource FROM incomplete i WHERE i.shared <> '{}'
         UNION ALL
        SELECT p.position, p.resource FROM millhand.parked p WHERE p.handler IS NULL AND NOT p.exclusive
    ), line AS MATERIALIZED (
        -- Who comes first of those that need a resource exclusively, and of the others.
        SELECT n.resource, min(n.task_position) FILTER (WHERE n.is_exclusive) AS exclusive_head,
               min(n.task_position) FILTER (WHERE NOT n.is_exclusive) AS shared_head
          FROM (SELECT i.task_position, unnest(i.exclusive) AS resource, true AS is_exclusive
                  FROM incomplete i
                 UNION ALL
                SELECT p.position, p.resource, true FROM millhand.parked p WHERE p.exclusive
                 UNION ALL
                SELECT s.task_position, s.resource, false FROM sharer s) AS n
         GROUP BY n.resource
    ), at_front AS (
        -- How many of its resources have nobody before this task that conflicts with it.
        SELECT f.task_position, count(*) AS n
          FROM (SELECT l.exclusive_head AS task_position FROM line l
                 WHERE l.exclusive_head < coalesce(l.shared_head, 9223372036854775807)
                 UNION ALL
                SELECT s.task_position FROM sharer s JOIN line l USING (resource)
                 WHERE s.task_position < coalesce(l.exclusive_head, 9223372036854775807)) AS f
         GROUP BY f.task_position
    ), free AS MATERIALIZED (
        SELECT t.id FROM millhand.task t
         WHERE t.id = ANY (ARRAY(
                   SELECT i.id FROM incomplete i LEFT JOIN at_front f USING (task_position)
                    WHERE i.state = 'waiting'
                      AND cardinality(i.exclusive) + cardinality(i.shared) = coalesce(f.n, 0)))
           AND t.unblocked_at IS NULL AND t.state = 'waiting'
    ), marked AS (
        UPDATE millhand.task SET unblocked_at = clock_timestamp()
         WHERE id = ANY (ARRAY(
                   SELECT t.id FROM millhand.task t
                    WHERE t.id = ANY (ARRAY(SELECT f.id FROM free f))
                      FOR NO KEY UPDATE SKIP LOCKED))
           AND state = 'waiting'
        RETURNING name
    )
    SELECT count(*) FILTER (WHERE name = ANY (handlers)),
           count(*) FILTER (WHERE name <> ALL (handlers)),
           has_parked OR count(*) < (SELECT count(*) FROM free)
      INTO n_own, n_others, held_up FROM marked;
END
$$;

-- One turn of a worker of type pulpcore, as next_task is for others: what it takes
-- and returns is said there. `unblocks` is false for auxiliary workers.
--
-- What is marked goes first; who finds nothing walks. So while there is enough that
-- is marked, nobody walks, and one walk is for all that has ended until then. An end
-- may have freed something that an idle worker should start: `more` wakes one,
-- which walks if it has to, and if it need not, leaves that to the next one.
CREATE OR REPLACE FUNCTION millhand.unblocked_turn(
    worker_id bigint, worker_name text, handlers text[], low bigint, stragglers bigint[],
    ended_task bigint, outcome text, task_result jsonb, task_error text, task_log text,
    task_log_size bigint, task_progress jsonb,
    wanted boolean, idle_siblings boolean, take_bell_down boolean, hang_bell boolean,
    unblocks boolean,
    OUT owned boolean,
    OUT task_id bigint, OUT task_name text, OUT task_args jsonb, OUT task_fence bigint,
    OUT task_attempt integer, OUT task_exclusive text[], OUT task_shared text[],
    OUT more boolean, OUT inconclusive boolean, OUT unfinished boolean, OUT bell_hung boolean
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    freed text[];
    look_further boolean;
    candidate record;
    walk record;
    is_for_others boolean := false;
    has_walked boolean := false;
    wants_walk boolean;
BEGIN
    IF take_bell_down THEN
        PERFORM pg_advisory_unlock_shared(millhand.bell_lock());
    END IF;
    IF ended_task IS NOT NULL THEN
        -- As in dispatch: whoever hangs a bell before this commits looks again.
        PERFORM pg_advisory_xact_lock_shared(millhand.dispatching_lock());
        freed := millhand.finish_task(
            worker_id, ended_task, outcome, task_result, task_error, task_log, task_log_size,
            task_progress, false);
        IF freed IS NULL THEN
            owned := false;
            RETURN;
        END IF;
    END IF;
    IF NOT wanted THEN
        -- This worker leaves: what its task kept waiting is for others.
        PERFORM millhand.ring();
        RETURN;
    END IF;
    look_further := idle_siblings OR millhand.bell_hangs();
    <<looks>>
    LOOP
        FOR candidate IN
            -- As in_sight.
            (SELECT t.ctid AS place, t.id FROM millhand.task t
              WHERE t.unblocked_at IS NOT NULL AND t.state = 'waiting' AND t.name = ANY (handlers)
                AND t.position = ANY (stragglers)
              ORDER BY t.position)
             UNION ALL
            (SELECT t.ctid, t.id FROM millhand.task t
              WHERE t.unblocked_at IS NOT NULL AND t.state = 'waiting' AND t.name = ANY (handlers)
                AND t.position >= low
              ORDER BY t.position)
        LOOP
            IF task_id IS NOT NULL THEN
                more := true;
                EXIT looks;
            END IF;
            IF NOT pg_try_advisory_lock(millhand.task_lock(candidate.id)) THEN
                -- Somebody starts it now.
                inconclusive := true;
                CONTINUE;
            END IF;
            UPDATE millhand.task t
               SET state = 'running', owner = worker_id, worker = worker_name,
                   fence = nextval('millhand.task_fence'), attempt = t.attempt + 1,
                   started_at = clock_timestamp()
             WHERE t.ctid = (SELECT w.ctid FROM millhand.task w
                              WHERE w.ctid = candidate.place AND w.state = 'waiting'
                                FOR NO KEY UPDATE SKIP LOCKED)
            RETURNING t.id, t.name, t.args, t.fence, t.attempt, t.exclusive, t.shared
                 INTO task_id, task_name, task_args, task_fence, task_attempt, task_exclusive,
                      task_shared;
            IF NOT FOUND THEN
                PERFORM pg_advisory_unlock(millhand.task_lock(candidate.id));
                inconclusive := true;
            ELSIF NOT look_further THEN
                EXIT looks;
            END IF;
        END LOOP;
        IF task_id IS NOT NULL THEN
            EXIT;
        END IF;
        IF unblocks AND NOT has_walked THEN
            has_walked := true;
            SELECT * INTO walk FROM millhand.unblock(handlers, low, stragglers);
            IF walk.is_busy OR walk.held_up THEN
                inconclusive := true;
            END IF;
            -- Marked once, told once.
            is_for_others := is_for_others OR walk.n_others > 0;
            -- Another worker may have marked some since this one looked.
            CONTINUE WHEN NOT walk.is_busy;
        END IF;
        EXIT WHEN NOT hang_bell OR bell_hung;
        PERFORM pg_advisory_lock_shared(millhand.bell_lock());
        bell_hung := true;
        inconclusive := NOT (pg_try_advisory_lock(millhand.dispatching_lock())
                             AND pg_advisory_unlock(millhand.dispatching_lock()));
        has_walked := false;
    END LOOP;
    IF bell_hung AND task_id IS NOT NULL THEN
        PERFORM pg_advisory_unlock_shared(millhand.bell_lock());
        bell_hung := false;
    END IF;
    -- What the ended task has freed is not marked yet. And who was woken and found
    -- something marked was woken for a walk, perhaps.
    wants_walk := NOT has_walked
                  AND (freed <> '{}'
                       OR unblocks AND ended_task IS NULL AND task_id IS NOT NULL AND look_further);
    is_for_others := is_for_others OR more AND NOT idle_siblings;
    more := more OR wants_walk AND unblocks;
    -- As in next_task, more work needs a cause of its own to be told.
    IF (is_for_others OR wants_walk AND NOT unblocks
        OR more AND look_further AND NOT idle_siblings
           AND (task_id IS NOT NULL OR ended_task IS NOT NULL))
       AND millhand.bell_hangs()
    THEN
        -- Who does not walk need not hear of what is not marked.
        PERFORM pg_notify('millhand_wakeup', CASE WHEN is_for_others THEN 'handle' ELSE 'unblock' END);
    END IF;
END
$$;

-- Tells all processes how many tasks have been marked for more than 5 seconds and
-- still wait, and for how many seconds the oldest has: "COUNT SECONDS". One process
-- tells, and the others, who hear it, need not.
CREATE OR REPLACE FUNCTION millhand.tell_metrics() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF pg_try_advisory_xact_lock(millhand.metrics_lock()) THEN
        PERFORM pg_notify('millhand_metrics', (
            SELECT format('%s %s', count(*),
                          coalesce(round(extract(epoch FROM clock_timestamp() - min(t.unblocked_at))), 0))
              FROM millhand.task t
             WHERE t.unblocked_at IS NOT NULL AND t.state = 'waiting'
               AND t.unblocked_at < clock_timestamp() - interval '5 seconds'));
    END IF;
END
$$;
