-- Ends what a worker owns that will not come back to it, and removes its row.
-- Call it only when the worker's processes are certainly dead.
--
-- The guard on the owner makes this the worker's last act: whoever wins the
-- row lock, the worker itself or a sweeper, the other finds nothing to do.
-- `by_itself` says that the worker settles itself and knows the fencing token of the
-- last start whose handler it began, `begun_fence`: what was started for it later
-- never began, and goes back to wait at its place.
--
-- Returns how many tasks it settled; null if that has to be tried again, because
-- the worker's session cannot be ended (its server process stands still, or is
-- another role's), or somebody keeps the row of one task locked (such as a cancel in
-- a transaction that stays open), or the worker's own row. None of that is waited
-- for, so that one such worker holds up no other; only `by_itself` waits.
CREATE OR REPLACE FUNCTION millhand.settle_worker(
    worker_id bigint, reason text, by_itself boolean DEFAULT false, begun_fence bigint DEFAULT NULL
) RETURNS integer
LANGUAGE plpgsql AS $$
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

-- Ends these sessions. One of a role that this one may not end stays, and is no
-- reason to leave the rest undone.
CREATE OR REPLACE FUNCTION millhand.terminate(sessions integer[]) RETURNS void
LANGUAGE plpgsql AS $$
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

-- Settles a worker whose heartbeat the caller has watched stand still, at this
-- count, for the worker's whole ttl. By then it has stopped its tasks, or its warden
-- has killed them (ARCHITECTURE.md, "Liveness"). A count of -1 stands for an owner
-- of tasks that has no row, because the commit that made it was lost.
--
-- Returns how many tasks were settled: 0 if it is alive, or another sweeper is at
-- it; null if it has to be tried again.
CREATE OR REPLACE FUNCTION millhand.settle_missing(worker_id bigint, last_seen bigint) RETURNS integer
LANGUAGE plpgsql AS $$
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

-- Settles the workers of one process, which is dead, and returns how many have
-- to be tried again. (Wardens of version 3 call it; those of today settle one worker
-- in one transaction.)
CREATE OR REPLACE FUNCTION millhand.settle_process(process text) RETURNS integer
LANGUAGE sql AS $$
    SELECT count(*)::integer
      FROM (SELECT millhand.settle_worker(w.id, format('worker %s has gone missing', w.name)) AS n_settled
              FROM millhand.worker w WHERE w.process = $1 ORDER BY w.id) AS settled
     WHERE settled.n_settled IS NULL
$$;

-- Removes rows of this process that nobody stands for: a registration was
-- committed, and its connection was lost before the worker learned of it. Such
-- a row would be renewed for as long as its process lives. It owns nothing, and
-- its lock, taken before it could be seen, is free.
CREATE OR REPLACE FUNCTION millhand.forget_unknown_workers(process text) RETURNS void
LANGUAGE sql AS $$
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
$$;

-- Registers a worker, on the connection that it will work on, and returns its
-- id, which nobody had before. `lock_owner` is that of its locks, if they are not
-- to be those of the session. `previous` is the id that the same thread had on
-- a connection that it lost; what it owned is settled first, in this very
-- transaction: see settle_worker for `begun_fence`. `begun` is the task that it ran when
-- that was lost, with its name and attempt: where it still waits, the server has lost its
-- start, and others shall not run it once more.
-- All workers that have a row must be of one type. (Those of a fleet that died go
-- when somebody has watched them for their ttl.)
CREATE OR REPLACE FUNCTION millhand.add_worker(
    worker_name text, worker_type text, process text, hostname text, pid integer, ttl interval,
    lock_owner text, previous bigint, begun_fence bigint,
    begun bigint, begun_name text, begun_attempt integer
) RETURNS bigint
LANGUAGE plpgsql AS $$
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

-- The same as workers of version 3 call it: `begun` is the one task whose handler had
-- begun.
CREATE OR REPLACE FUNCTION millhand.register_worker(
    worker_name text, worker_type text, process text, hostname text, pid integer, ttl interval,
    lock_owner text, previous bigint, begun bigint
) RETURNS bigint
LANGUAGE sql AS $$
    SELECT millhand.add_worker($1, $2, $3, $4, $5, $6, $7, $8,
                               (SELECT t.fence FROM millhand.task t WHERE t.id = $9),
                               NULL, NULL, NULL)
$$;

-- Takes a worker's row away when it leaves. By then it runs nothing: what it owns all
-- the same it has ended, and the server has lost that commit (a failover to a standby
-- that was behind).
CREATE OR REPLACE FUNCTION millhand.leave(worker_id bigint) RETURNS void
LANGUAGE plpgsql AS $$
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
