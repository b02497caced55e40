-- Unfinished tasks with resources between two positions ($1, $2), in their order: those
-- that are parked and the others, each by its own index.
SELECT t.id, t.position, t.exclusive, t.shared
  FROM (SELECT s.id, s.position, s.exclusive, s.shared FROM millhand.task s
         WHERE s.state IN ('waiting', 'running', 'canceling') AND NOT s.parked
           AND s.position > $1::bigint AND s.position < $2::bigint
         UNION ALL
        SELECT s.id, s.position, s.exclusive, s.shared FROM millhand.task s
         WHERE s.id = ANY (ARRAY(SELECT DISTINCT p.task_id FROM millhand.parked p
                                  WHERE p.position > $1::bigint AND p.position < $2::bigint))
           AND s.parked AND s.state = 'waiting') AS t
 WHERE t.exclusive <> '{}' OR t.shared <> '{}'
 ORDER BY t.position
