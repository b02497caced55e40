-- What is incomplete and not parked: where every look goes, in the order of the
-- positions.
--
-- A look must not walk over the remains of finished tasks, which cannot be
-- cleaned away while an old transaction is open. So it begins at `low`; below
-- that only the `stragglers` are incomplete, by their positions. Who looks knows
-- both from the safety poll of its process (poll).
--
-- Postgres puts this query into the one that asks.
CREATE OR REPLACE FUNCTION millhand.in_sight(low bigint, stragglers bigint[]) RETURNS TABLE (
    place tid, id bigint, name text, state text, task_position bigint, exclusive text[], shared text[]
)
LANGUAGE sql STABLE AS $$
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
$$;
