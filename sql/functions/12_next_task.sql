-- One turn of a worker, in one round trip and one transaction: ends the task
-- that it ran, if `ended_task` is given, and starts the next one, if `wanted`.
-- `owned` is false, and nothing was done, if that task was not the worker's any
-- more. Where a flag is null, read false.
--
-- The look. Why no task can start before an earlier one that conflicts with it:
-- one query reads the incomplete tasks in order in one snapshot, and every one
-- of them, whatever its state, reserves all its resources for the rest of the
-- look, those that are parked through the table parked. Positions of
-- conflicting tasks follow commit order (dispatch), so a snapshot that shows a
-- task shows all earlier tasks that conflict with it; those that it shows as
-- final stay final. What held in the snapshot therefore holds at the UPDATE
-- too, which only has to make sure that the task is still waiting. The locks
-- play no part in that: they keep workers from trying in vain, and tell others
-- at once when a worker has died.
--
-- The first 20 waiting tasks are a page, not a horizon. A look goes on to 200,
-- which costs little. If the worker that waits for its whole process has passed
-- over two pages and found nothing, it parks those beyond the first, and its next
-- look, at once, goes on from there. (If it did not get to 200, and they came within
-- the last 0.25 s, in which some hundreds are dispatched one by one, they stay for now:
-- parking beside a burst slows down whoever dispatches it.)
-- If it can park less than half of them, because somebody keeps their rows or those
-- of their blockers locked, it goes to 10,000: steps of a few would get nowhere.
-- `low` and `stragglers` say where to look (in_sight).
--
-- The bell. One idle worker of each process holds bell_lock in shared mode, so
-- that who dispatches can see that somebody must be woken (ring). The worker
-- hangs the bell first (`hang_bell`) and looks once more afterwards. A dispatch
-- that saw no bell and has not committed yet would then go unnoticed, but it
-- holds dispatching_lock until its end, so an exclusive try for that tells of
-- it, and the look was `inconclusive`.
--
-- `idle_siblings`: the worker's process has other workers to wake, and `more`
-- says that yet another waiting task looked free, whoever has a handler for it.
-- If it has none, more work is told to other processes from here. Whoever is
-- idle has looked since it was last told of work, so all that can be new here is
-- what the ended task has `freed`: if the next task takes all that for itself,
-- the look is over.
--
-- `inconclusive`: a task that looked free was in somebody's hands for the
-- moment, or one that waits for what was freed may wait for nothing else than
-- what others are ending just now, who cannot see this end either; look again
-- soon. `unfinished`: the look ended before the queue did; look on at once.
--
-- Every expression is made ready anew in every transaction, and every statement
-- costs as much as ten of them, so there are few; what is seldom needed is in
-- functions of its own.
CREATE OR REPLACE FUNCTION millhand.next_task(
    worker_id bigint, worker_name text, handlers text[], low bigint, stragglers bigint[],
    ended_task bigint, outcome text, task_result jsonb, task_error text, task_log text,
    task_log_size bigint, task_progress jsonb,
    wanted boolean, idle_siblings boolean, take_bell_down boolean, hang_bell boolean,
    OUT owned boolean,
    OUT task_id bigint, OUT task_name text, OUT task_args jsonb, OUT task_fence bigint,
    OUT task_attempt integer, OUT task_exclusive text[], OUT task_shared text[],
    OUT more boolean, OUT inconclusive boolean, OUT unfinished boolean, OUT bell_hung boolean
)
LANGUAGE plpgsql AS $$
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
