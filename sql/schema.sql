CREATE SCHEMA millhand;

CREATE FUNCTION millhand.add_worker(worker_name text, worker_type text, process text, hostname text, pid integer, ttl interval, lock_owner text, previous bigint, begun_fence bigint, begun bigint, begun_name text, begun_attempt integer) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    other record;
    ended record;
    worker_id bigint;
BEGIN
    -- Before the lock of registrations: this may wait for a row that somebody
    -- else keeps locked, which is no matter of other workers. And not for ever, so
    -- that the thread hears in between whether it should end.
    IF previous IS NOT NULL THEN
        PERFORM set_config('lock_timeout', '2s', true);
        PERFORM millhand.settle_worker(
            previous, format('worker %s lost its connection to Postgres', worker_name), true,
            begun_fence);
        UPDATE millhand.task
           SET state = 'failed', parked = false, worker = worker_name, fence = begun_fence,
               attempt = begun_attempt, started_at = clock_timestamp(), finished_at = clock_timestamp(),
               error = format('worker %s lost its connection to Postgres', worker_name)
         WHERE id = begun AND state = 'waiting' AND name = begun_name AND attempt = begun_attempt - 1
        RETURNING position, exclusive, shared INTO ended;
        IF FOUND THEN
            -- As in cancel: tasks behind it may be free now.
            DELETE FROM millhand.parked WHERE position = ended.position;
            PERFORM millhand.note_freed(ended.exclusive || ended.shared, FOUND);
            PERFORM millhand.ring();
        END IF;
        PERFORM set_config('lock_timeout', '0', true);
    END IF;
    -- One registration at a time, so that two types cannot pass each other.
    PERFORM pg_advisory_xact_lock(millhand.register_lock());
    SELECT name, type INTO other FROM millhand.worker WHERE type <> worker_type LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'a worker of type `%` cannot start while worker % of type `%` is online; '
            'stop those first', worker_type, other.name, other.type
            -- It passes: whoever cannot start tries again.
            USING ERRCODE = 'object_in_use';
    END IF;
    PERFORM millhand.forget_unknown_workers(add_worker.process);
    INSERT INTO millhand.worker (name, type, process, hostname, pid, ttl, lock_owner)
    VALUES (worker_name, worker_type, add_worker.process, add_worker.hostname,
            add_worker.pid, add_worker.ttl, add_worker.lock_owner)
    RETURNING id INTO worker_id;
    IF add_worker.lock_owner IS NULL THEN
        PERFORM pg_advisory_lock(millhand.worker_lock(worker_id));
    END IF;
    RETURN worker_id;
END
$$;

CREATE FUNCTION millhand.all_names(exclusive text[], shared text[]) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $_$
    SELECT CASE WHEN pg_catalog.array_ndims($1) > 1 OR pg_catalog.array_ndims($2) > 1 THEN NULL
           ELSE $1 || $2 END
$_$;

CREATE FUNCTION millhand.args_text(args jsonb) RETURNS text
    LANGUAGE sql STABLE
    AS $_$
    SELECT CASE WHEN pg_column_size($1) <= 1000 THEN $1::text
                ELSE millhand.long_json_text($1, 16777216) END
$_$;

CREATE FUNCTION millhand.beat(workers bigint[]) RETURNS SETOF bigint
    LANGUAGE sql
    AS $_$
    UPDATE millhand.worker SET heartbeat = heartbeat + 1, last_heartbeat = clock_timestamp()
     WHERE id = ANY ($1) RETURNING id
$_$;

CREATE FUNCTION millhand.begin_session() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog'
    AS $$
DECLARE
    known bigint;
    now_on bigint;
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'this server is a standby, where all transactions are read-only transactions'
            USING ERRCODE = 'read_only_sql_transaction';
    END IF;
    BEGIN
        -- The first eight digits of the file that is being written to.
        now_on := ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint;
    EXCEPTION WHEN insufficient_privilege OR feature_not_supported THEN
        -- Some providers do not tell. They do not lose commits either.
        RETURN;
    END;
    SELECT s.timeline INTO known FROM millhand.server s;
    IF known = now_on THEN
        RETURN;
    END IF;
    -- One at a time, and whoever waited looks again: a second lift would be in vain.
    PERFORM FROM millhand.server FOR UPDATE;
    SELECT s.timeline INTO known FROM millhand.server s;
    IF known IS DISTINCT FROM now_on THEN
        PERFORM setval('millhand.task_fence', f.last_value + 4294967296) FROM millhand.task_fence f;
        PERFORM setval('millhand.worker_id_seq', w.last_value + 1000000) FROM millhand.worker_id_seq w;
        UPDATE millhand.server SET timeline = now_on;
    END IF;
END
$$;

CREATE FUNCTION millhand.behind_parked(exclusive text[], shared text[], task_position bigint) RETURNS TABLE(is_behind boolean)
    LANGUAGE sql STABLE
    AS $_$
    SELECT EXISTS (SELECT FROM unnest($1) AS line
                    CROSS JOIN LATERAL (SELECT p.position FROM millhand.parked p
                                         WHERE p.resource BETWEEN line AND line
                                         ORDER BY p.resource, p.position LIMIT 1) AS head
                    WHERE head.position < $3)
           OR EXISTS (SELECT FROM unnest($2) AS line
                       CROSS JOIN LATERAL (SELECT p.position FROM millhand.parked p
                                            WHERE p.resource BETWEEN line AND line AND p.exclusive
                                            ORDER BY p.resource, p.position LIMIT 1) AS head
                       WHERE head.position < $3)
$_$;

CREATE FUNCTION millhand.bell_hangs() RETURNS boolean
    LANGUAGE sql
    AS $$SELECT NOT (pg_catalog.pg_try_advisory_lock(millhand.bell_lock())
             AND pg_catalog.pg_advisory_unlock(millhand.bell_lock()))$$;

CREATE FUNCTION millhand.bell_lock() RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$SELECT pg_catalog.hashint8extended(1, 7305)$$;

CREATE FUNCTION millhand.bring_back(handlers text[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM millhand.unpark_behind('{}');
    PERFORM millhand.call_back(handlers);
END
$$;

CREATE FUNCTION millhand.call_back(handlers text[]) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION millhand.cancel(id bigint) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog'
    AS $$
#variable_conflict use_column
DECLARE
    found_state text;
    ended record;
    running record;
BEGIN
    -- As in dispatch: whoever hangs a bell before this commits looks again.
    PERFORM pg_advisory_xact_lock_shared(millhand.dispatching_lock());
    LOOP
        UPDATE millhand.task SET state = 'canceled', parked = false, finished_at = clock_timestamp()
         WHERE id = cancel.id AND state IN ('scheduled', 'waiting')
        RETURNING position, exclusive, shared INTO ended;
        IF FOUND THEN
            -- Tasks behind it may be free now.
            DELETE FROM millhand.parked WHERE position = ended.position;
            PERFORM millhand.note_freed(ended.exclusive || ended.shared, FOUND);
            PERFORM millhand.ring();
            RETURN 'canceled';
        END IF;
        UPDATE millhand.task SET state = 'canceling'
         WHERE id = cancel.id AND state = 'running'
        RETURNING owner INTO running;
        IF FOUND THEN
            IF EXISTS (SELECT FROM millhand.worker w WHERE w.id = running.owner AND w.lock_owner IS NULL) THEN
                PERFORM pg_notify('millhand_cancel', cancel.id::text);
            END IF;
            RETURN 'canceling';
        END IF;
        SELECT state INTO found_state FROM millhand.task WHERE id = cancel.id;
        IF NOT FOUND OR found_state NOT IN ('scheduled', 'waiting', 'running') THEN
            RETURN found_state;
        END IF;
    END LOOP;
END
$$;

CREATE FUNCTION millhand.check_task(name text, args jsonb, exclusive text[], shared text[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    resource text;
BEGIN
    IF coalesce(name, '') = '' THEN
        RAISE EXCEPTION 'a task needs a name' USING ERRCODE = 'check_violation';
    END IF;
    IF pg_catalog.pg_column_size(args) > 1048576 THEN
        RAISE EXCEPTION 'the arguments of task `%` take % bytes, at most 1048576 (1 MiB) are allowed; '
            'store large data elsewhere and pass where it is', pg_catalog.left(name, 100),
            pg_catalog.pg_column_size(args)
            USING ERRCODE = 'check_violation';
    END IF;
    IF pg_catalog.cardinality(exclusive) + pg_catalog.cardinality(shared) > 256 THEN
        RAISE EXCEPTION 'task `%` names % resources, at most 256 are allowed; '
            'name a larger thing that contains them', pg_catalog.left(name, 100),
            pg_catalog.cardinality(exclusive) + pg_catalog.cardinality(shared)
            USING ERRCODE = 'check_violation';
    END IF;
    IF pg_catalog.array_ndims(exclusive) > 1 OR pg_catalog.array_ndims(shared) > 1 THEN
        RAISE EXCEPTION 'task `%` names its resources in lists of lists; one list is expected',
            pg_catalog.left(name, 100) USING ERRCODE = 'check_violation';
    END IF;
    FOREACH resource IN ARRAY exclusive || shared LOOP
        IF coalesce(resource, '') = '' THEN
            RAISE EXCEPTION 'task `%` names an empty resource', pg_catalog.left(name, 100)
                USING ERRCODE = 'check_violation';
        ELSIF pg_catalog.length(resource) > 1000 THEN
            RAISE EXCEPTION 'task `%` names a resource of % characters (`%...`), at most 1000 are allowed',
                pg_catalog.left(name, 100), pg_catalog.length(resource), pg_catalog.left(resource, 20)
                USING ERRCODE = 'check_violation';
        END IF;
    END LOOP;
END
$$;

CREATE FUNCTION millhand.dispatch(name text, args jsonb DEFAULT '{}'::jsonb, exclusive text[] DEFAULT '{}'::text[], shared text[] DEFAULT '{}'::text[]) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION millhand.dispatch_many(tasks jsonb) RETURNS SETOF bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog'
    AS $$
#variable_conflict use_column
DECLARE
    all_exclusive text[];
    all_shared text[];
    wrong text;
BEGIN
    IF jsonb_typeof(tasks) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION 'expected a JSON array of tasks' USING ERRCODE = 'check_violation';
    END IF;
    IF EXISTS (SELECT FROM jsonb_array_elements(tasks) AS task WHERE jsonb_typeof(task) <> 'object') THEN
        RAISE EXCEPTION 'expected a JSON object for each task' USING ERRCODE = 'check_violation';
    END IF;
    SELECT key INTO wrong
      FROM jsonb_array_elements(tasks) AS task, jsonb_object_keys(task) AS key
     WHERE key NOT IN ('name', 'args', 'exclusive', 'shared')
           OR key IN ('exclusive', 'shared')
              AND jsonb_typeof(task -> key) NOT IN ('array', 'null') LIMIT 1;
    IF wrong IN ('exclusive', 'shared') THEN
        RAISE EXCEPTION '`%` of a task is not a list of resources, such as ["disk"]', wrong
            USING ERRCODE = 'check_violation';
    ELSIF FOUND THEN
        RAISE EXCEPTION 'unknown key `%` in a task; known are name, args, exclusive and shared', wrong
            USING ERRCODE = 'check_violation';
    END IF;
    PERFORM millhand.check_task(t.name, coalesce(t.args, '{}'), coalesce(t.exclusive, '{}'), coalesce(t.shared, '{}'))
       FROM jsonb_to_recordset(tasks) AS t(name text, args jsonb, exclusive text[], shared text[])
      WHERE millhand.is_plain(t.name, coalesce(t.args, '{}'), t.exclusive, t.shared,
                              coalesce(millhand.all_names(t.exclusive, t.shared), '{}')) IS NOT TRUE;
    PERFORM pg_current_xact_id();
    PERFORM pg_advisory_xact_lock_shared(millhand.dispatching_lock());
    SELECT array_agg(n.resource) FILTER (WHERE n.is_exclusive),
           array_agg(n.resource) FILTER (WHERE NOT n.is_exclusive)
      INTO all_exclusive, all_shared
      FROM jsonb_to_recordset(tasks) AS t(exclusive text[], shared text[])
     CROSS JOIN LATERAL millhand.needs(t.exclusive, t.shared) AS n;
    PERFORM millhand.lock_places(coalesce(all_exclusive, '{}'), coalesce(all_shared, '{}'));
    -- The sort stands in a subquery, so that ids and positions are drawn in
    -- the order of the array.
    RETURN QUERY
        INSERT INTO millhand.task (name, args, exclusive, shared, position)
        SELECT t.name, t.args, t.exclusive, t.shared, nextval('millhand.task_position')
          FROM (SELECT g.name, g.args,
                       CASE WHEN p.is_plain THEN g.exclusive
                            ELSE millhand.without(g.exclusive, '{}') END AS exclusive,
                       CASE WHEN p.is_plain THEN g.shared
                            ELSE millhand.without(g.shared, g.exclusive) END AS shared
                  FROM (SELECT name, coalesce(args, '{}') AS args,
                               coalesce(exclusive, '{}') AS exclusive,
                               coalesce(shared, '{}') AS shared, number
                          FROM ROWS FROM (jsonb_to_recordset(tasks)
                                          AS (name text, args jsonb, exclusive text[], shared text[]))
                               WITH ORDINALITY AS given(name, args, exclusive, shared, number)) AS g
                 CROSS JOIN LATERAL
                       (SELECT millhand.is_plain(g.name, g.args, g.exclusive, g.shared,
                                                 millhand.all_names(g.exclusive, g.shared)) AS is_plain) AS p
                 ORDER BY g.number) AS t
        RETURNING id;
    PERFORM millhand.ring();
END
$$;

CREATE FUNCTION millhand.dispatching_lock() RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$SELECT pg_catalog.hashint8extended(2, 7305)$$;

CREATE FUNCTION millhand.finish_task(worker_id bigint, task_id bigint, outcome text, task_result jsonb, task_error text, task_log text, task_log_size bigint, task_progress jsonb, holds_resources boolean) RETURNS text[]
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION millhand.forget_unknown_workers(process text) RETURNS void
    LANGUAGE sql
    AS $_$
    DELETE FROM millhand.worker
     WHERE id IN (SELECT w.id FROM millhand.worker w
                   WHERE w.process = $1 AND w.lock_owner IS NULL
                     AND NOT EXISTS (SELECT FROM millhand.task t
                                      WHERE t.owner = w.id AND t.state IN ('running', 'canceling'))
                     AND pg_try_advisory_lock(millhand.worker_lock(w.id))
                     AND pg_advisory_unlock(millhand.worker_lock(w.id))
                     -- Its thread may be settling it just now, and waiting
                     -- for the lock of registrations that is held here.
                     FOR UPDATE SKIP LOCKED)
$_$;

CREATE FUNCTION millhand.highest_fence(thorough boolean) RETURNS bigint
    LANGUAGE sql STABLE
    AS $$
    SELECT CASE WHEN thorough THEN (SELECT max(t.fence) FROM millhand.task t)
           ELSE greatest(
        (SELECT max(t.fence) FROM millhand.task t WHERE t.owner IS NOT NULL),
        (SELECT max(t.fence)
           FROM (SELECT fence FROM millhand.task ORDER BY id DESC LIMIT 1000) AS t),
        (SELECT max(t.fence)
           FROM (SELECT fence FROM millhand.task
                  WHERE id < (SELECT f.id FROM millhand.task f
                               WHERE f.state IN ('waiting', 'running', 'canceling') AND NOT f.parked
                               ORDER BY f.position LIMIT 1)
                  ORDER BY id DESC LIMIT 1000) AS t))
           END
$$;

CREATE FUNCTION millhand.highest_position() RETURNS bigint
    LANGUAGE sql STABLE
    AS $$
    SELECT greatest(
        (SELECT max(t.position) FROM millhand.task t
          WHERE t.state IN ('waiting', 'running', 'canceling') AND NOT t.parked),
        (SELECT max(p.position) FROM millhand.parked p),
        (SELECT max(t.position)
           FROM (SELECT position FROM millhand.task ORDER BY id DESC LIMIT 1000) AS t))
$$;

CREATE FUNCTION millhand.in_sight(low bigint, stragglers bigint[]) RETURNS TABLE(place tid, id bigint, name text, state text, task_position bigint, exclusive text[], shared text[])
    LANGUAGE sql STABLE
    AS $_$
    (SELECT t.ctid, t.id, t.name, t.state, t.position, t.exclusive, t.shared
       FROM millhand.task t
      WHERE t.state IN ('waiting', 'running', 'canceling') AND NOT t.parked
        AND t.position = ANY ($2)
      ORDER BY t.position)
     UNION ALL
    (SELECT t.ctid, t.id, t.name, t.state, t.position, t.exclusive, t.shared
       FROM millhand.task t
      WHERE t.state IN ('waiting', 'running', 'canceling') AND NOT t.parked
        AND t.position >= $1
      ORDER BY t.position)
$_$;

CREATE FUNCTION millhand.is_consistent(state text, task_position bigint, owner bigint, started_at timestamp with time zone, finished_at timestamp with time zone) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    AS $$
BEGIN
    CASE state
        WHEN 'waiting' THEN
            RETURN task_position IS NOT NULL AND owner IS NULL AND finished_at IS NULL;
        WHEN 'running', 'canceling' THEN
            RETURN task_position IS NOT NULL AND owner IS NOT NULL AND started_at IS NOT NULL
                   AND finished_at IS NULL;
        WHEN 'completed', 'failed' THEN
            RETURN owner IS NULL AND started_at IS NOT NULL AND finished_at IS NOT NULL;
        WHEN 'canceled' THEN
            RETURN owner IS NULL AND finished_at IS NOT NULL;
        WHEN 'scheduled' THEN
            RETURN owner IS NULL AND finished_at IS NULL;
        ELSE
            RETURN false;
    END CASE;
END
$$;

CREATE FUNCTION millhand.is_plain(name text, args jsonb, exclusive text[], shared text[], names text[]) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $_$
    SELECT $1 <> '' AND pg_catalog.pg_column_size($2) <= 1048576 AND pg_catalog.cardinality($5) <= 2
           AND '' <> ALL ($5) AND pg_catalog.length(pg_catalog.array_to_string($5, '')) <= 1000
           AND ($5[1] IS DISTINCT FROM $5[2] OR $5 = '{}')
           AND coalesce(pg_catalog.array_lower($3, 1), 1) = 1
           AND coalesce(pg_catalog.array_lower($4, 1), 1) = 1
$_$;

CREATE FUNCTION millhand.joint_turn(ended bigint[], ended_by bigint[], outcomes text[], results jsonb[], errors text[], logs text[], started bigint[], started_by bigint[]) RETURNS TABLE(task_id bigint, what text, task_name text, task_args jsonb, task_fence bigint, task_attempt integer)
    LANGUAGE sql
    AS $_$
    SELECT task_id, what, task_name, task_args, task_fence, task_attempt
      FROM millhand.joint_turn($1, $2, $3, $4, $5, $6,
                               array_fill(NULL::bigint, ARRAY[cardinality($1)]),
                               array_fill(NULL::jsonb, ARRAY[cardinality($1)]), $7, $8)
$_$;

CREATE FUNCTION millhand.joint_turn(ended bigint[], ended_by bigint[], outcomes text[], results jsonb[], errors text[], logs text[], log_sizes bigint[], progresses jsonb[], started bigint[], started_by bigint[]) RETURNS TABLE(task_id bigint, what text, task_name text, task_args jsonb, task_fence bigint, task_attempt integer, task_exclusive text[], task_shared text[])
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION millhand.lagging_sequences(thorough boolean) RETURNS TABLE(sequence text, highest bigint)
    LANGUAGE sql
    AS $$
    SELECT s.sequence, s.highest
      FROM (VALUES (pg_get_serial_sequence('millhand.task', 'id'), (SELECT max(t.id) FROM millhand.task t)),
                   (pg_get_serial_sequence('millhand.worker', 'id'), (SELECT max(w.id) FROM millhand.worker w)),
                   ('millhand.task_position', millhand.highest_position()),
                   ('millhand.task_fence', millhand.highest_fence(thorough))
           ) AS s(sequence, highest)
     WHERE s.highest > millhand.last_drawn(s.sequence)
$$;

CREATE FUNCTION millhand.last_drawn(sequence text) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
DECLARE
    drawn bigint;
BEGIN
    IF has_sequence_privilege(sequence, 'SELECT') THEN
        EXECUTE format('SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM %s', sequence)
           INTO drawn;
    END IF;
    RETURN drawn;
END
$$;

CREATE FUNCTION millhand.leave(worker_id bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    gone record;
BEGIN
    IF EXISTS (SELECT FROM millhand.task WHERE owner = worker_id) THEN
        -- Where a row is kept locked, others sweep what stays.
        PERFORM millhand.settle_worker(
            worker_id, 'it was ended, and the server has lost how');
        RETURN;
    END IF;
    DELETE FROM millhand.worker WHERE id = worker_id RETURNING process, lock_owner INTO gone;
    IF FOUND AND gone.lock_owner IS NULL THEN
        PERFORM millhand.forget_unknown_workers(gone.process);
        PERFORM pg_advisory_unlock(millhand.worker_lock(worker_id));
    END IF;
END
$$;

CREATE FUNCTION millhand.lock_places(exclusive text[], shared text[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM CASE WHEN place.exclusive THEN pg_catalog.pg_advisory_xact_lock(place.key)
                 ELSE pg_catalog.pg_advisory_xact_lock_shared(place.key) END
       FROM (SELECT millhand.place_lock(n.resource) AS key, pg_catalog.bool_or(n.is_exclusive) AS exclusive
               FROM millhand.needs(lock_places.exclusive, lock_places.shared) AS n
              GROUP BY key ORDER BY key) AS place;
END
$$;

CREATE FUNCTION millhand.long_json_text(json jsonb, most integer) RETURNS text
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    json_text text;
BEGIN
    json_text := json::text;
    RETURN CASE WHEN octet_length(json_text) <= most THEN json_text END;
EXCEPTION WHEN program_limit_exceeded OR out_of_memory THEN
    RETURN NULL;
END
$$;

CREATE FUNCTION millhand.mend_names() RETURNS bigint
    LANGUAGE sql
    AS $$
    WITH mended AS (
        UPDATE millhand.task
           SET exclusive = ARRAY(SELECT name FROM unnest(exclusive) AS name WHERE name IS NOT NULL),
               shared = ARRAY(SELECT name FROM unnest(shared) AS name WHERE name IS NOT NULL)
         WHERE state IN ('waiting', 'running', 'canceling')
           AND (array_ndims(exclusive) > 1 OR array_ndims(shared) > 1)
        RETURNING id
    )
    SELECT count(*) FROM mended
$$;

CREATE FUNCTION millhand.mend_sequences() RETURNS SETOF text
    LANGUAGE plpgsql
    SET lock_timeout TO '2s'
    AS $$
DECLARE
    lagging record;
BEGIN
    IF NOT EXISTS (SELECT FROM millhand.lagging_sequences(false)) THEN
        RETURN;
    END IF;
    LOCK TABLE millhand.task, millhand.worker IN SHARE ROW EXCLUSIVE MODE;
    FOR lagging IN SELECT * FROM millhand.lagging_sequences(true) LOOP
        PERFORM setval(lagging.sequence::regclass, lagging.highest);
        RETURN NEXT format('sequence %s lagged behind the rows; it goes on after %s',
                           lagging.sequence, lagging.highest);
    END LOOP;
END
$$;

CREATE FUNCTION millhand.metrics_lock() RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$SELECT pg_catalog.hashint8extended(5, 7305)$$;

CREATE FUNCTION millhand.needs(exclusive text[], shared text[]) RETURNS TABLE(resource text, is_exclusive boolean)
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $_$
    SELECT r, true FROM pg_catalog.unnest($1) AS r
     UNION ALL
    SELECT r, false FROM pg_catalog.unnest($2) AS r
$_$;

CREATE FUNCTION millhand.next_task(worker_id bigint, worker_name text, handlers text[], low bigint, stragglers bigint[], ended_task bigint, outcome text, task_result jsonb, task_error text, task_log text, wanted boolean, idle_siblings boolean, take_bell_down boolean, hang_bell boolean, OUT owned boolean, OUT task_id bigint, OUT task_name text, OUT task_args jsonb, OUT task_fence bigint, OUT task_attempt integer, OUT more boolean, OUT inconclusive boolean, OUT unfinished boolean, OUT bell_hung boolean) RETURNS record
    LANGUAGE sql
    AS $_$
    SELECT owned, task_id, task_name, task_args, task_fence, task_attempt, more, inconclusive, unfinished,
           bell_hung
      FROM millhand.next_task($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, NULL, NULL,
                              $11, $12, $13, $14)
$_$;

CREATE FUNCTION millhand.next_task(worker_id bigint, worker_name text, handlers text[], low bigint, stragglers bigint[], ended_task bigint, outcome text, task_result jsonb, task_error text, task_log text, task_log_size bigint, task_progress jsonb, wanted boolean, idle_siblings boolean, take_bell_down boolean, hang_bell boolean, OUT owned boolean, OUT task_id bigint, OUT task_name text, OUT task_args jsonb, OUT task_fence bigint, OUT task_attempt integer, OUT task_exclusive text[], OUT task_shared text[], OUT more boolean, OUT inconclusive boolean, OUT unfinished boolean, OUT bell_hung boolean) RETURNS record
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    freed text[];
    others_end boolean;
    look_further boolean;
    is_deep boolean := hang_bell OR take_bell_down;
    has_unparked boolean := false;
    lines text[];
    held_up boolean;
    look refcursor;
    has_rows boolean;
    candidate record;
    reserved_exclusive text[];
    reserved_shared text[];
    blocked boolean;
    nothing_new boolean;
    locked boolean;
    n_passed integer;
    n_last integer := 200;
    n_parked integer;
    behind bigint[];
    for_others bigint[];
BEGIN
    IF take_bell_down THEN
        PERFORM pg_advisory_unlock_shared(millhand.bell_lock());
    END IF;
    IF ended_task IS NOT NULL THEN
        -- As in dispatch: whoever hangs a bell before this commits looks again.
        locked := pg_advisory_xact_lock_shared(millhand.dispatching_lock()) IS NULL;
        -- Before the look: of two who end tasks at once, the second sees the
        -- first here.
        others_end := NOT (pg_try_advisory_lock(millhand.dispatching_lock())
                           AND pg_advisory_unlock(millhand.dispatching_lock()));
        freed := millhand.finish_task(
            worker_id, ended_task, outcome, task_result, task_error, task_log, task_log_size,
            task_progress, true);
        IF freed IS NULL THEN
            owned := false;
            RETURN;
        END IF;
    END IF;
    IF NOT wanted THEN
        -- This worker leaves: what its task kept waiting is for others.
        PERFORM millhand.unpark_behind(freed);
        PERFORM millhand.ring();
        RETURN;
    END IF;
    look_further := idle_siblings OR millhand.bell_hangs();
    <<looks>>
    LOOP
        n_passed := 0;
        reserved_exclusive := '{}';
        reserved_shared := '{}';
        IF has_unparked OR stragglers <> '{}' THEN
            OPEN look FOR
                SELECT t.place, t.id, t.name, t.state, t.exclusive, t.shared,
                       CASE t.task_position > (SELECT p.position FROM millhand.parked p
                                                ORDER BY p.position LIMIT 1)
                            WHEN false THEN false
                            WHEN true THEN NOT has_unparked
                                 OR (SELECT b.is_behind FROM millhand.behind_parked(
                                         t.exclusive, t.shared, t.task_position) AS b)
                            END AS behind_parked -- null if nothing is parked
                  FROM millhand.in_sight(low, stragglers) AS t
                 ORDER BY t.task_position;
        ELSE
            -- The same for the usual case, at a tenth less of the turn's cost.
            OPEN look FOR
                SELECT t.ctid AS place, t.id, t.name, t.state, t.exclusive, t.shared,
                       CASE WHEN EXISTS (SELECT FROM millhand.parked) THEN true END AS behind_parked
                  FROM millhand.task t
                 WHERE t.state IN ('waiting', 'running', 'canceling') AND NOT t.parked
                   AND t.position >= low
                 ORDER BY t.position;
        END IF;
        has_rows := false;
        LOOP
            FETCH look INTO candidate;
            EXIT WHEN NOT FOUND;
            has_rows := true;
            EXIT WHEN candidate.behind_parked IS NOT NULL AND NOT has_unparked;
            IF candidate.state = 'waiting' THEN
                -- Most of those in a long line need nothing but what those before them
                -- need. If any of that exclusively, they are blocked, and nothing else
                -- has to be compared.
                nothing_new := candidate.exclusive <@ reserved_exclusive
                               AND candidate.shared <@ reserved_shared;
                blocked := nothing_new AND candidate.exclusive <> '{}'
                           OR candidate.exclusive && reserved_exclusive
                           OR candidate.exclusive && reserved_shared
                           OR candidate.shared && reserved_exclusive
                           OR candidate.behind_parked IS TRUE;
                IF NOT blocked THEN
                    IF task_id IS NOT NULL THEN
                        more := true;
                        inconclusive := inconclusive OR others_end;
                        EXIT looks;
                    ELSIF candidate.name <> ALL (handlers) THEN
                        -- Others may have a handler; it keeps its place.
                        more := look_further;
                        IF is_deep AND n_passed >= 20 THEN
                            for_others := for_others || candidate.id;
                        END IF;
                    ELSIF millhand.try_locks(candidate.id, candidate.exclusive, candidate.shared) THEN
                        -- By its place in the table, which costs no index.
                        -- Nobody waits here for a row that somebody else keeps
                        -- locked, such as a cancel in a transaction that stays
                        -- open.
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
                            PERFORM millhand.unlock(candidate.id, candidate.exclusive, candidate.shared);
                            inconclusive := true;
                        ELSIF NOT look_further OR more OR freed <@ candidate.exclusive THEN
                            EXIT looks;
                        END IF;
                    ELSE
                        -- Who holds them starts it now, or has just ended what was
                        -- in its way and lets go a moment after that can be seen.
                        inconclusive := true;
                    END IF;
                END IF;
                IF others_end AND blocked AND look_further
                   AND (candidate.exclusive || candidate.shared) && freed
                THEN
                    inconclusive := true;
                END IF;
                n_passed := n_passed + 1;
                IF n_passed > 20 THEN
                    IF is_deep AND blocked THEN
                        behind := behind || candidate.id;
                    END IF;
                    IF n_passed = n_last THEN
                        unfinished := true;
                        more := look_further;
                        EXIT;
                    END IF;
                END IF;
                CONTINUE WHEN nothing_new;
            END IF;
            reserved_exclusive := reserved_exclusive || candidate.exclusive;
            IF candidate.shared <> '{}' THEN
                reserved_shared := reserved_shared || candidate.shared;
            END IF;
        END LOOP;
        CLOSE look;
        IF NOT has_unparked AND (NOT has_rows OR candidate.behind_parked IS NOT NULL) THEN
            -- Seldom: something may be parked, and come back.
            has_unparked := true;
            SELECT u.lines, u.held_up INTO lines, held_up
              FROM millhand.unpark_behind(coalesce(freed, '{}')) AS u;
            IF held_up THEN
                inconclusive := true;
                IF freed IS NOT NULL THEN
                    -- Whoever waits to be woken tries again until it succeeds.
                    PERFORM millhand.ring();
                END IF;
            END IF;
            -- (The last one may have come back in the moment between.)
            IF held_up IS NOT NULL OR candidate.behind_parked IS NOT NULL THEN
                IF freed IS NOT NULL THEN
                    freed := lines;
                END IF;
                more := millhand.call_back(handlers) AND look_further;
                CONTINUE looks;
            END IF;
        END IF;
        EXIT WHEN task_id IS NOT NULL;
        is_deep := is_deep AND n_passed > 40;
        IF is_deep AND n_passed < 200 THEN
            is_deep := EXISTS (SELECT FROM millhand.task t
                                WHERE t.id = ANY (ARRAY[behind[1], for_others[1]])
                                  AND t.created_at < clock_timestamp() - interval '0.25 s');
        END IF;
        IF is_deep THEN
            n_parked := millhand.park(behind, low, stragglers)
                        + millhand.park_for_others(for_others);
            IF unfinished AND n_last = 200 AND n_parked * 2 < n_passed - 20 THEN
                unfinished := false;
                n_last := 10000;
                behind := NULL;
                for_others := NULL;
                CONTINUE looks;
            END IF;
            IF n_parked = 0 THEN
                -- Others have their rows in hand.
                unfinished := false;
                inconclusive := true;
            END IF;
        END IF;
        EXIT WHEN NOT hang_bell OR unfinished OR bell_hung;
        PERFORM pg_advisory_lock_shared(millhand.bell_lock());
        bell_hung := true;
        inconclusive := NOT pg_try_advisory_lock(millhand.dispatching_lock());
        IF NOT inconclusive THEN
            PERFORM pg_advisory_unlock(millhand.dispatching_lock());
        END IF;
        is_deep := false;
        has_unparked := false;
    END LOOP;
    IF bell_hung AND unfinished THEN
        -- Much has come meanwhile, or could not be parked: look again soon.
        unfinished := false;
        inconclusive := true;
    END IF;
    IF bell_hung AND task_id IS NOT NULL THEN
        PERFORM pg_advisory_unlock_shared(millhand.bell_lock());
        bell_hung := false;
    END IF;
    -- Ringing needs a cause of its own, a start or an end; otherwise idle
    -- processes could wake each other for ever over work that none can do.
    IF (more OR inconclusive AND others_end) AND look_further AND NOT idle_siblings
       AND (task_id IS NOT NULL OR ended_task IS NOT NULL)
    THEN
        PERFORM millhand.ring();
    END IF;
END
$$;

CREATE FUNCTION millhand.note_freed(lines text[], was_parked boolean) RETURNS void
    LANGUAGE sql
    AS $_$
    INSERT INTO millhand.freed (resource)
    SELECT r FROM unnest($1) AS r
     WHERE ($2 OR current_setting('transaction_isolation') <> 'read committed'
            OR EXISTS (SELECT FROM millhand.parked p WHERE p.resource BETWEEN r AND r))
       -- Once a transaction is enough: a thousand cancels, one note.
       AND NOT EXISTS (SELECT FROM millhand.freed f
                        WHERE f.resource = r AND f.xmin = pg_current_xact_id()::xid)
$_$;

CREATE FUNCTION millhand.park(candidates bigint[], low bigint, stragglers bigint[]) RETURNS integer
    LANGUAGE plpgsql
    SET enable_hashjoin TO 'on'
    AS $$
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

CREATE FUNCTION millhand.park_for_others(candidates bigint[]) RETURNS integer
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION millhand.place_lock(name text) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $_$SELECT pg_catalog.hashint8extended(pg_catalog.hashtextextended($1, 7304) & 1023, 7304)$_$;

CREATE FUNCTION millhand.poll(process text, INOUT low bigint, INOUT stragglers bigint[], INOUT mark bigint, INOUT mark_xid bigint, OUT canceling bigint[], OUT lost bigint[], OUT waiting boolean, OUT owned bigint[], OUT owned_by bigint[], OUT workers bigint[], OUT heartbeats bigint[], OUT ttls double precision[]) RETURNS record
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_variable
DECLARE
    own record;
    seen bigint[];
    known_up_to bigint;
    next_position bigint;
    -- Each costs a look as much as a task in its way.
    max_stragglers CONSTANT integer := 100;
    drawn bigint;
BEGIN
    SELECT coalesce(array_agg(t.id) FILTER (WHERE t.state = 'canceling'), '{}'),
           coalesce(array_agg(t.id), '{}'), coalesce(array_agg(w.id), '{}')
      INTO canceling, owned, owned_by
      FROM millhand.worker w
      JOIN millhand.task t ON t.owner = w.id AND t.state IN ('running', 'canceling')
     WHERE w.process = poll.process;
    SELECT coalesce(array_agg(w.id), '{}'), coalesce(array_agg(w.heartbeat), '{}'),
           coalesce(array_agg(extract(epoch FROM w.ttl)::double precision), '{}')
      INTO workers, heartbeats, ttls
      FROM millhand.worker w;
    lost := '{}';
    FOR own IN SELECT w.id FROM millhand.worker w
                WHERE w.process = poll.process AND w.lock_owner IS NULL LOOP
        IF pg_try_advisory_lock(millhand.worker_lock(own.id)) THEN
            PERFORM pg_advisory_unlock(millhand.worker_lock(own.id));
            lost := lost || own.id;
        END IF;
    END LOOP;
    IF mark_xid IS NULL OR pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= mark_xid THEN
        IF mark_xid IS NOT NULL THEN
            -- Parked tasks come back at their place. One statement: between
            -- two, one that comes back could be missed by both.
            SELECT array_agg(t.task_position),
                   least(mark + 1, (SELECT min(p.position) FROM millhand.parked p))
              INTO seen, known_up_to
              FROM (SELECT s.task_position FROM millhand.in_sight(low, stragglers) AS s
                     ORDER BY s.task_position LIMIT max_stragglers + 1) AS t;
            -- From the last place before which much has been finished.
            stragglers := '{}';
            low := least(seen[1], known_up_to);
            FOR n IN 1 .. least(coalesce(cardinality(seen), 0), max_stragglers) LOOP
                EXIT WHEN seen[n] >= known_up_to;
                next_position := least(seen[n + 1], known_up_to);
                IF next_position - seen[n] > 1000 THEN
                    stragglers := seen[:n];
                    low := next_position;
                END IF;
            END LOOP;
        END IF;
        -- Before the first draw of all, last_value is what will be drawn.
        SELECT CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END INTO drawn
          FROM millhand.task_position s;
        -- An idle fleet draws no transaction ids.
        IF mark IS DISTINCT FROM drawn THEN
            mark := drawn;
            mark_xid := pg_current_xact_id()::text::bigint;
        END IF;
    END IF;
    waiting := EXISTS (SELECT FROM millhand.in_sight(low, stragglers) AS t WHERE t.state = 'waiting')
               OR EXISTS (SELECT FROM millhand.freed) AND EXISTS (SELECT FROM millhand.parked)
               OR EXISTS (SELECT FROM millhand.parked WHERE handler IS NOT NULL);
END
$$;

CREATE FUNCTION millhand.register_lock() RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$SELECT pg_catalog.hashint8extended(3, 7305)$$;

CREATE FUNCTION millhand.register_worker(worker_name text, worker_type text, process text, hostname text, pid integer, ttl interval, lock_owner text, previous bigint, begun bigint) RETURNS bigint
    LANGUAGE sql
    AS $_$
    SELECT millhand.add_worker($1, $2, $3, $4, $5, $6, $7, $8,
                               (SELECT t.fence FROM millhand.task t WHERE t.id = $9),
                               NULL, NULL, NULL)
$_$;

CREATE FUNCTION millhand.resource_lock(name text) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $_$SELECT pg_catalog.hashtextextended(coalesce($1, ''), 7301)$_$;

CREATE FUNCTION millhand.ring() RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF millhand.bell_hangs() THEN
        PERFORM pg_catalog.pg_notify('millhand_wakeup', '');
    END IF;
END
$$;

CREATE FUNCTION millhand.set_parked(ids bigint[], for_others boolean) RETURNS integer
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION millhand.settle_missing(worker_id bigint, last_seen bigint) RETURNS integer
    LANGUAGE plpgsql
    AS $$
DECLARE
    missing record;
    its_name text;
BEGIN
    SELECT w.name, w.heartbeat INTO missing
      FROM millhand.worker w WHERE w.id = worker_id FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
        IF missing.heartbeat <> last_seen THEN
            RETURN 0;
        END IF;
        its_name := missing.name;
    ELSIF last_seen >= 0 OR EXISTS (SELECT FROM millhand.worker w WHERE w.id = worker_id) THEN
        RETURN 0;
    ELSE
        SELECT t.worker INTO its_name FROM millhand.task t WHERE t.owner = worker_id LIMIT 1;
    END IF;
    RETURN millhand.settle_worker(worker_id, format('worker %s has gone missing', its_name));
END
$$;

CREATE FUNCTION millhand.settle_process(process text) RETURNS integer
    LANGUAGE sql
    AS $_$
    SELECT count(*)::integer
      FROM (SELECT millhand.settle_worker(w.id, format('worker %s has gone missing', w.name)) AS n_settled
              FROM millhand.worker w WHERE w.process = $1 ORDER BY w.id) AS settled
     WHERE settled.n_settled IS NULL
$_$;

CREATE FUNCTION millhand.settle_worker(worker_id bigint, reason text, by_itself boolean DEFAULT false, begun_fence bigint DEFAULT NULL::bigint) RETURNS integer
    LANGUAGE plpgsql
    AS $$
DECLARE
    n_settled integer := 0;
    has_session boolean;
    is_free boolean;
    its_process text;
    ended record;
BEGIN
    -- Nobody can stop a commit, and what starts a task for this worker may be in the
    -- midst of it: only when that has ended can everything that it started be seen
    -- below.
    SELECT w.lock_owner IS NULL, w.process INTO has_session, its_process
      FROM millhand.worker w WHERE w.id = worker_id;
    has_session := coalesce(has_session, true);
    IF by_itself AND NOT has_session THEN
        PERFORM FROM millhand.worker WHERE id = worker_id FOR UPDATE;
    ELSIF NOT has_session THEN
        PERFORM FROM millhand.worker WHERE id = worker_id FOR UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            -- A session of its process has been at it ever since, because nobody takes
            -- its answer (the process is frozen, or cut off), or just this moment. It
            -- goes, and then somebody tries again.
            PERFORM millhand.terminate(ARRAY(
                SELECT a.pid FROM pg_stat_activity a
                 WHERE a.application_name = 'millhand worker ' || its_process AND a.state <> 'idle'
                   AND a.pid <> pg_backend_pid()));
            RETURN NULL;
        END IF;
    ELSE
        -- A session that outlived its worker (frozen, cut off, or busy for it when
        -- it was killed) goes first.
        PERFORM millhand.terminate(ARRAY(
            SELECT pid
              FROM pg_locks
             WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND pid <> pg_backend_pid()
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND (classid::bigint << 32 | objid::bigint) = millhand.worker_lock(worker_id)
               -- Not another settler, which may hold it for a moment, too.
               AND NOT EXISTS (SELECT FROM pg_stat_activity a
                                WHERE a.pid = pg_locks.pid
                                  AND a.application_name IN ('millhand housekeeper', 'millhand warden'))));
        IF by_itself THEN
            PERFORM pg_advisory_lock(millhand.worker_lock(worker_id));
        ELSE
            -- A session that was just told to end takes a moment, and no longer.
            FOR n IN 1..10 LOOP
                is_free := pg_try_advisory_lock(millhand.worker_lock(worker_id));
                EXIT WHEN is_free;
                PERFORM pg_sleep(0.005);
            END LOOP;
            IF NOT is_free THEN
                RETURN NULL;
            END IF;
        END IF;
        PERFORM pg_advisory_unlock(millhand.worker_lock(worker_id));
        -- And as in dispatch: whoever hangs a bell before this commits looks again.
        PERFORM pg_advisory_xact_lock_shared(millhand.dispatching_lock());
    END IF;
    IF NOT by_itself AND
       (SELECT count(*) FROM millhand.task WHERE owner = worker_id AND state IN ('running', 'canceling'))
       > (SELECT count(*) FROM (SELECT FROM millhand.task
                                 WHERE owner = worker_id AND state IN ('running', 'canceling')
                                   FOR NO KEY UPDATE SKIP LOCKED) AS unlocked)
    THEN
        RETURN NULL;
    END IF;
    IF by_itself THEN
        UPDATE millhand.task
           SET state = 'waiting', owner = NULL, worker = NULL, fence = NULL, started_at = NULL,
               attempt = attempt - 1
         WHERE owner = worker_id AND state = 'running' AND fence > coalesce(begun_fence, 0);
        GET DIAGNOSTICS n_settled = ROW_COUNT;
    END IF;
    FOR ended IN
        UPDATE millhand.task
           SET state = CASE state WHEN 'canceling' THEN 'canceled' ELSE 'failed' END,
               error = CASE state WHEN 'canceling' THEN NULL ELSE reason END,
               owner = NULL, finished_at = clock_timestamp()
         WHERE owner = worker_id AND state IN ('running', 'canceling')
        RETURNING exclusive, shared
    LOOP
        PERFORM millhand.unpark_behind(ended.exclusive || ended.shared);
        n_settled := n_settled + 1;
    END LOOP;
    DELETE FROM millhand.worker WHERE id = worker_id;
    IF n_settled > 0 AND has_session THEN
        PERFORM millhand.ring();
    END IF;
    RETURN n_settled;
END
$$;

CREATE FUNCTION millhand.shown(json jsonb) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $_$
    SELECT CASE WHEN pg_column_size($1) > 1000 AND millhand.long_json_text($1, 1000000000) IS NULL
                THEN '"(too long to be shown)"' ELSE $1 END
$_$;

CREATE FUNCTION millhand.sweep() RETURNS integer
    LANGUAGE sql
    AS $$
    SELECT coalesce(sum(millhand.settle_missing(w.id, w.heartbeat)), 0)::integer
      FROM millhand.worker w WHERE w.last_heartbeat + w.ttl < clock_timestamp()
$$;

CREATE FUNCTION millhand.task_lock(id bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $_$SELECT pg_catalog.hashint8extended($1, 7302)$_$;

CREATE FUNCTION millhand.tell_metrics() RETURNS void
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION millhand.terminate(sessions integer[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    session integer;
BEGIN
    FOREACH session IN ARRAY sessions LOOP
        BEGIN
            PERFORM pg_terminate_backend(session);
        EXCEPTION WHEN insufficient_privilege THEN
            NULL;
        END;
    END LOOP;
END
$$;

CREATE FUNCTION millhand.try_locks(task_id bigint, exclusive text[], shared text[]) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION millhand.unblock(handlers text[], low bigint, stragglers bigint[], OUT is_busy boolean, OUT n_own bigint, OUT n_others bigint, OUT held_up boolean) RETURNS record
    LANGUAGE plpgsql
    SET enable_hashjoin TO 'on'
    AS $$
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

CREATE FUNCTION millhand.unblocked_turn(worker_id bigint, worker_name text, handlers text[], low bigint, stragglers bigint[], ended_task bigint, outcome text, task_result jsonb, task_error text, task_log text, wanted boolean, idle_siblings boolean, take_bell_down boolean, hang_bell boolean, unblocks boolean, OUT owned boolean, OUT task_id bigint, OUT task_name text, OUT task_args jsonb, OUT task_fence bigint, OUT task_attempt integer, OUT more boolean, OUT inconclusive boolean, OUT unfinished boolean, OUT bell_hung boolean) RETURNS record
    LANGUAGE sql
    AS $_$
    SELECT owned, task_id, task_name, task_args, task_fence, task_attempt, more, inconclusive, unfinished,
           bell_hung
      FROM millhand.unblocked_turn($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, NULL, NULL,
                                   $11, $12, $13, $14, $15)
$_$;

CREATE FUNCTION millhand.unblocked_turn(worker_id bigint, worker_name text, handlers text[], low bigint, stragglers bigint[], ended_task bigint, outcome text, task_result jsonb, task_error text, task_log text, task_log_size bigint, task_progress jsonb, wanted boolean, idle_siblings boolean, take_bell_down boolean, hang_bell boolean, unblocks boolean, OUT owned boolean, OUT task_id bigint, OUT task_name text, OUT task_args jsonb, OUT task_fence bigint, OUT task_attempt integer, OUT task_exclusive text[], OUT task_shared text[], OUT more boolean, OUT inconclusive boolean, OUT unfinished boolean, OUT bell_hung boolean) RETURNS record
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION millhand.unblocking_lock() RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$SELECT pg_catalog.hashint8extended(4, 7305)$$;

CREATE FUNCTION millhand.unlock(task_id bigint, exclusive text[], shared text[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION millhand.unpark_behind(INOUT lines text[], OUT held_up boolean) RETURNS record
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION millhand.without(names text[], others text[]) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE
    AS $$
DECLARE
    name text;
    kept text[] := '{}';
BEGIN
    -- (An array that begins elsewhere than at 1 is built anew.)
    IF names = '{}' OR others = '{}' AND pg_catalog.cardinality(names) = 1
                       AND pg_catalog.array_lower(names, 1) = 1 THEN
        RETURN names;
    END IF;
    FOREACH name IN ARRAY names LOOP
        IF name <> ALL (kept) AND name <> ALL (others) THEN
            kept := kept || name;
        END IF;
    END LOOP;
    RETURN kept;
END
$$;

CREATE FUNCTION millhand.worker_lock(id bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $_$SELECT pg_catalog.hashint8extended($1, 7303)$_$;

CREATE TABLE millhand.freed (
    resource text NOT NULL,
    id bigint NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0');

ALTER TABLE millhand.freed ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME millhand.freed_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE millhand.migration (
    version integer NOT NULL,
    name text NOT NULL,
    applied_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE millhand.parked (
    "position" bigint NOT NULL,
    resource text NOT NULL,
    exclusive boolean NOT NULL,
    task_id bigint NOT NULL,
    handler text
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0');

CREATE TABLE millhand.server (
    timeline bigint
);

CREATE TABLE millhand.task (
    id bigint NOT NULL,
    name text NOT NULL,
    state text DEFAULT 'waiting'::text NOT NULL,
    "position" bigint,
    parked boolean DEFAULT false NOT NULL,
    exclusive text[] DEFAULT '{}'::text[] NOT NULL,
    shared text[] DEFAULT '{}'::text[] NOT NULL,
    args jsonb DEFAULT '{}'::jsonb NOT NULL,
    owner bigint,
    worker text,
    fence bigint,
    attempt integer DEFAULT 0 NOT NULL,
    progress jsonb,
    result jsonb,
    error text,
    log text,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    unblocked_at timestamp with time zone,
    log_size bigint,
    CONSTRAINT task_consistent CHECK (millhand.is_consistent(state, "position", owner, started_at, finished_at))
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='10000', autovacuum_vacuum_cost_delay='0');

COMMENT ON COLUMN millhand.task.parked IS 'Known to wait behind an earlier task; looks skip it until that one has ended.';

COMMENT ON COLUMN millhand.task.owner IS 'The worker row that may end the task.';

COMMENT ON COLUMN millhand.task.worker IS 'Name of the worker that ran it last.';

COMMENT ON COLUMN millhand.task.unblocked_at IS 'Since when no earlier task is in the way, as far as workers of type pulpcore have found; others do not look at it.';

COMMENT ON COLUMN millhand.task.log_size IS 'How many bytes of text its command has written to stderr in all; `log` is the end of them.';

CREATE SEQUENCE millhand.task_fence
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE millhand.task_fence OWNED BY millhand.task.fence;

COMMENT ON SEQUENCE millhand.task_fence IS 'Fencing tokens: each start of a task draws a higher one.';

ALTER TABLE millhand.task ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME millhand.task_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE SEQUENCE millhand.task_position
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE millhand.task_position OWNED BY millhand.task."position";

COMMENT ON SEQUENCE millhand.task_position IS 'Order of waiting tasks; drawn under the dispatch locks of the task''s resources.';

CREATE TABLE millhand.worker (
    id bigint NOT NULL,
    name text NOT NULL,
    type text NOT NULL,
    process text NOT NULL,
    hostname text NOT NULL,
    pid integer NOT NULL,
    started_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    last_heartbeat timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    ttl interval NOT NULL,
    lock_owner text,
    heartbeat bigint DEFAULT 0 NOT NULL,
    auxiliary boolean DEFAULT false NOT NULL,
    CONSTRAINT worker_ttl_positive CHECK ((ttl > '00:00:00'::interval))
)
WITH (fillfactor='50');

COMMENT ON COLUMN millhand.worker.process IS 'Drawn at each start of a worker process; the workers of one process share it.';

COMMENT ON COLUMN millhand.worker.last_heartbeat IS 'When the row was renewed last, by the database''s clock; for people to read, nothing is decided by it.';

COMMENT ON COLUMN millhand.worker.lock_owner IS 'The owner of this worker''s locks in the lock store; null if its session holds them.';

COMMENT ON COLUMN millhand.worker.heartbeat IS 'Counts renewals of this row. Who sweeps has watched it stand still for a whole ttl.';

COMMENT ON COLUMN millhand.worker.auxiliary IS 'Whether it leaves it to others to sweep workers that have died.';

ALTER TABLE millhand.worker ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME millhand.worker_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

ALTER TABLE ONLY millhand.freed
    ADD CONSTRAINT freed_pkey PRIMARY KEY (resource, id);

ALTER TABLE ONLY millhand.migration
    ADD CONSTRAINT migration_pkey PRIMARY KEY (version);

ALTER TABLE ONLY millhand.parked
    ADD CONSTRAINT parked_pkey PRIMARY KEY ("position", resource);

ALTER TABLE ONLY millhand.task
    ADD CONSTRAINT task_pkey PRIMARY KEY (id);

ALTER TABLE ONLY millhand.worker
    ADD CONSTRAINT worker_pkey PRIMARY KEY (id);

CREATE INDEX parked_exclusive_line ON millhand.parked USING btree (resource, "position") WHERE exclusive;

CREATE INDEX parked_handler ON millhand.parked USING btree (handler, "position") WHERE (handler IS NOT NULL);

CREATE INDEX parked_line ON millhand.parked USING btree (resource, "position");

CREATE INDEX task_incomplete ON millhand.task USING btree ("position") WHERE ((state = ANY (ARRAY['waiting'::text, 'running'::text, 'canceling'::text])) AND (NOT parked));

CREATE INDEX task_owned ON millhand.task USING btree (owner) WHERE (owner IS NOT NULL);

CREATE INDEX task_unblocked ON millhand.task USING btree ("position") WHERE ((unblocked_at IS NOT NULL) AND (state = 'waiting'::text));
