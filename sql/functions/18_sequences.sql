-- Sequences that lag behind the rows: a logical replica copies rows and no sequences,
-- and a hand may set one. With positions drawn anew, tasks would overtake earlier ones
-- that they conflict with; with fences drawn anew, storage would refuse new tasks.
--
-- All is found by indexes, in the time of some lookups, however large the table is.

-- The last number that a sequence has drawn; null if this role may not know.
CREATE OR REPLACE FUNCTION millhand.last_drawn(sequence text) RETURNS bigint
LANGUAGE plpgsql AS $$
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

-- The highest position: of all unfinished tasks, which is what the order needs, and of
-- the newest of all, so that finished ones are not taken for later ones either.
CREATE OR REPLACE FUNCTION millhand.highest_position() RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT greatest(
        (SELECT max(t.position) FROM millhand.task t
          WHERE t.state IN ('waiting', 'running', 'canceling') AND NOT t.parked),
        (SELECT max(p.position) FROM millhand.parked p),
        (SELECT max(t.position)
           FROM (SELECT position FROM millhand.task ORDER BY id DESC LIMIT 1000) AS t))
$$;

-- The highest fence: of what runs, of the newest tasks, and of the newest ones before
-- the first that is unfinished, because those that wait, however many, have none. If
-- `thorough`, of all tasks: that takes a scan, and is done where another sequence lags,
-- because then this one probably does, too.
CREATE OR REPLACE FUNCTION millhand.highest_fence(thorough boolean) RETURNS bigint
LANGUAGE sql STABLE AS $$
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

-- The sequences that lag, and up to what they have to be drawn.
CREATE OR REPLACE FUNCTION millhand.lagging_sequences(thorough boolean)
RETURNS TABLE (sequence text, highest bigint)
LANGUAGE sql AS $$
    SELECT s.sequence, s.highest
      FROM (VALUES (pg_get_serial_sequence('millhand.task', 'id'), (SELECT max(t.id) FROM millhand.task t)),
                   (pg_get_serial_sequence('millhand.worker', 'id'), (SELECT max(w.id) FROM millhand.worker w)),
                   ('millhand.task_position', millhand.highest_position()),
                   ('millhand.task_fence', millhand.highest_fence(thorough))
           ) AS s(sequence, highest)
     WHERE s.highest > millhand.last_drawn(s.sequence)
$$;

-- Sets sequences that lag forward, and returns a line for each. Whoever draws from one
-- inserts or updates a row: while nobody can, a number that was drawn meanwhile is seen,
-- and none goes back. That is tried for a moment only, and else fails.
CREATE OR REPLACE FUNCTION millhand.mend_sequences() RETURNS SETOF text
LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
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
