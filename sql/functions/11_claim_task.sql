-- Looks at the waiting tasks in order, tries their locks, and starts the first
-- that it gets; its columns are returned, or nulls.
--
-- With `look_further`, `more` says that yet another waiting task looked free,
-- whoever has a handler for it. `inconclusive` says that a task which looked
-- free was in somebody's hands for the moment: look again soon. `unfinished`
-- says that the look ended before the queue did: look on at once.
--
-- Why no task can start before an earlier one that conflicts with it: one query
-- reads the incomplete tasks in order in one snapshot, and every one of them,
-- whatever its state, reserves all its resources for the rest of the look,
-- those that are parked through the table parked.
-- Positions of conflicting tasks follow commit order (dispatch), so a snapshot
-- that shows a task shows all earlier tasks that conflict with it; those that
-- it shows as final stay final. What held in the snapshot therefore holds at
-- the UPDATE too, which only has to make sure that the task is still waiting.
-- The locks play no part in that: they keep workers from trying in vain, and
-- tell others at once when a worker has died.
--
-- The first 20 waiting tasks are a page, not a horizon. A look goes on to 200,
-- which costs little, and a `deep` one to the end. Of what is beyond the page
-- it parks 100 that wait behind others, so that no later look meets them.
--
-- `low` is a position below which nothing is incomplete (poll).
CREATE OR REPLACE FUNCTION millhand.claim_task(
    worker_id bigint, worker_name text, handlers text[], low bigint, look_further boolean,
    deep boolean,
    OUT task_id bigint, OUT task_name text, OUT task_args jsonb, OUT task_exclusive text[],
    OUT task_shared text[], OUT task_fence bigint, OUT task_attempt integer,
    OUT more boolean, OUT inconclusive boolean, OUT unfinished boolean
)
LANGUAGE plpgsql AS $$
DECLARE
    look refcursor;
    candidate record;
    reserved_exclusive text[] := '{}';
    reserved_shared text[] := '{}';
    blocked boolean;
    n_passed integer := 0;
    n_parked integer := 0;
    -- Shutdown and the end of a task never wait longer than this for a look.
    -- Only tasks that nobody here has a handler for can make one so long.
    deadline CONSTANT timestamptz := clock_timestamp() + interval '250 milliseconds';
BEGIN
    more := false;
    inconclusive := false;
    unfinished := false;
    OPEN look FOR
        SELECT t.id, t.name, t.state, t.position, t.exclusive, t.shared, false AS behind_parked,
               EXISTS (SELECT FROM millhand.parked) AS any_parked
          FROM millhand.task t
         WHERE t.state IN ('waiting', 'running', 'canceling') AND NOT t.parked AND t.position >= low
         ORDER BY t.position;
    LOOP
        FETCH look INTO candidate;
        EXIT WHEN NOT FOUND;
        IF candidate.any_parked THEN
            -- Seldom: the same, with more to ask about each task.
            CLOSE look;
            OPEN look FOR
                SELECT t.id, t.name, t.state, t.position, t.exclusive, t.shared,
                       EXISTS (SELECT FROM millhand.parked p
                                WHERE p.resource = ANY (t.exclusive) AND p.position < t.position)
                       OR EXISTS (SELECT FROM millhand.parked p
                                   WHERE p.exclusive AND p.resource = ANY (t.shared)
                                     AND p.position < t.position) AS behind_parked,
                       false AS any_parked
                  FROM millhand.task t
                 WHERE t.state IN ('waiting', 'running', 'canceling') AND NOT t.parked
                   AND t.position >= low
                 ORDER BY t.position;
            CONTINUE;
        END IF;
        IF candidate.state = 'waiting' THEN
            blocked := candidate.behind_parked OR candidate.exclusive && reserved_exclusive
                       OR candidate.exclusive && reserved_shared
                       OR candidate.shared && reserved_exclusive;
            IF NOT blocked THEN
                IF task_id IS NOT NULL THEN
                    more := true;
                    RETURN;
                ELSIF candidate.name <> ALL (handlers) THEN
                    -- Others may have a handler; it keeps its place.
                    more := look_further;
                ELSIF millhand.try_locks(candidate.id, candidate.exclusive, candidate.shared) THEN
                    -- The state comes as a value, not as a constant, so that
                    -- the primary key is the only index that can serve this.
                    -- Nobody waits here for a row that somebody else keeps
                    -- locked, such as a cancel in a transaction that stays open.
                    UPDATE millhand.task t
                       SET state = 'running', owner = worker_id, worker = worker_name,
                           fence = nextval('millhand.task_fence'), attempt = t.attempt + 1,
                           started_at = clock_timestamp()
                     WHERE t.id = (SELECT w.id FROM millhand.task w
                                    WHERE w.id = candidate.id AND w.state = candidate.state
                                      FOR NO KEY UPDATE SKIP LOCKED)
                    RETURNING t.id, t.name, t.args, t.exclusive, t.shared, t.fence, t.attempt
                         INTO task_id, task_name, task_args, task_exclusive, task_shared,
                              task_fence, task_attempt;
                    IF NOT FOUND THEN
                        PERFORM millhand.unlock(candidate.id, candidate.exclusive, candidate.shared);
                        inconclusive := true;
                    ELSIF NOT look_further OR more THEN
                        RETURN;
                    END IF;
                ELSE
                    -- Who holds them starts it now, or has just ended what was
                    -- in its way and lets go a moment after that can be seen.
                    inconclusive := true;
                END IF;
            END IF;
            n_passed := n_passed + 1;
            IF blocked AND n_passed > 20 AND deep AND task_id IS NULL
               AND millhand.park(candidate.id, candidate.position, candidate.exclusive,
                                 candidate.shared, low)
            THEN
                n_parked := n_parked + 1;
            END IF;
            IF n_parked = 100 OR n_passed = 200 AND NOT deep THEN
                unfinished := true;
                more := look_further;
                RETURN;
            ELSIF n_passed % 100 = 0 AND clock_timestamp() > deadline THEN
                inconclusive := true;
                RETURN;
            END IF;
            CONTINUE WHEN n_passed > 20 AND candidate.exclusive <@ reserved_exclusive
                      AND candidate.shared <@ reserved_shared;
        END IF;
        reserved_exclusive := reserved_exclusive || candidate.exclusive;
        IF candidate.shared <> '{}' THEN
            reserved_shared := reserved_shared || candidate.shared;
        END IF;
    END LOOP;
END
$$;
