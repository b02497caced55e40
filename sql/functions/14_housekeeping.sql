-- Renews the rows of these workers and returns their ids. An id that is missing
-- from the answer was swept: that worker must stop at once. Rows that nobody
-- stands for any more are not renewed, so that their heartbeat stands still.
CREATE OR REPLACE FUNCTION millhand.beat(workers bigint[]) RETURNS SETOF bigint
LANGUAGE sql AS $$
    UPDATE millhand.worker SET heartbeat = heartbeat + 1, last_heartbeat = clock_timestamp()
     WHERE id = ANY ($1) RETURNING id
$$;

-- Sweeps by the database's clock, as housekeepers of version 3 do; those of today call
-- settle_missing.
CREATE OR REPLACE FUNCTION millhand.sweep() RETURNS integer
LANGUAGE sql AS $$
    SELECT coalesce(sum(millhand.settle_missing(w.id, w.heartbeat)), 0)::integer
      FROM millhand.worker w WHERE w.last_heartbeat + w.ttl < clock_timestamp()
$$;

-- The safety poll of a process, once a second: what it may have missed.
--
-- `canceling`: tasks of its workers that should end. `owned`, `owned_by`: all tasks of
-- its workers, and whose they are; it compares that with what it runs. `lost`: workers
-- whose session is gone, told by their lock being free. `workers`, `heartbeats`, `ttls`:
-- all workers of the fleet; who sweeps watches them. `waiting`: whether there is
-- a waiting task that is not known to wait behind another, or may be one among
-- the parked.
--
-- `low` and `stragglers`: below low only the stragglers are incomplete, now or
-- later, so that looks never walk over the remains of finished tasks, which
-- cannot be cleaned away while an old transaction is open. A position that is
-- drawn but not committed is invisible yet, so low follows in two steps. A poll
-- notes the last position drawn (`mark`) and then draws a transaction id
-- (`mark_xid`); dispatch gets its transaction id before its position, so once
-- every transaction below mark_xid has ended, whatever has a position up to the
-- mark can be seen. (The end of a snapshot would not do for mark_xid: it only
-- follows the last transaction that has ended, and open ones may be beyond.)
CREATE OR REPLACE FUNCTION millhand.poll(
    process text, INOUT low bigint, INOUT stragglers bigint[],
    INOUT mark bigint, INOUT mark_xid bigint,
    OUT canceling bigint[], OUT lost bigint[], OUT waiting boolean,
    OUT owned bigint[], OUT owned_by bigint[],
    OUT workers bigint[], OUT heartbeats bigint[], OUT ttls double precision[]
)
LANGUAGE plpgsql AS $$
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
