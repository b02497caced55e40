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

-- Whether an earlier task that conflicts with this one is parked: one row, and like
-- the above it becomes a part of the query that asks.
--
-- Only the first of each line is asked for, and in the index's own order. Where the
-- statistics know of one long line only, a plain `resource = ANY (...)` would walk
-- along all that is parked, for each task of a look.
CREATE OR REPLACE FUNCTION millhand.behind_parked(
    exclusive text[], shared text[], task_position bigint
) RETURNS TABLE (is_behind boolean)
LANGUAGE sql STABLE AS $$
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
$$;
