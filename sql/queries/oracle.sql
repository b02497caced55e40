-- The oracle: one row for each violation of what must hold of a history,
-- whatever its size. Empty is sound. See tests/support/oracle.rs.
WITH needed AS (
    SELECT t.id, t.position, t.started_at, r.name, r.exclusive,
           CASE WHEN t.state IN ('completed', 'failed', 'canceled') AND t.finished_at IS NOT NULL
                THEN t.finished_at ELSE 'infinity' END AS ended_at
      FROM millhand.task t
     CROSS JOIN LATERAL (SELECT u.name, bool_or(u.exclusive) AS exclusive
                           FROM (SELECT unnest(t.exclusive) AS name, true AS exclusive
                                  UNION ALL SELECT unnest(t.shared), false) u
                          GROUP BY u.name) r
     WHERE t.position IS NOT NULL
), before AS (
    -- Who needs a resource exclusively comes after all before it, who shares
    -- it only after those that need it exclusively.
    SELECT id, name, started_at,
           CASE WHEN exclusive THEN max(ended_at) OVER earlier
                ELSE max(ended_at) FILTER (WHERE exclusive) OVER earlier END AS free_at
      FROM needed
    WINDOW earlier AS (PARTITION BY name ORDER BY position
                       ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
)
SELECT 'order' AS rule, id AS task,
       format('started at %s, but `%s` was not free before %s', started_at, name, free_at) AS detail
  FROM before WHERE started_at < free_at
UNION ALL
SELECT 'one start', id, format('%s attempts, fencing token %s', attempt, coalesce(fence::text, 'none'))
  FROM millhand.task
 WHERE attempt > 1 OR (started_at IS NOT NULL AND (attempt < 1 OR fence IS NULL))
UNION ALL
SELECT 'one start', max(id), format('fencing token %s was given %s times', fence, count(*))
  FROM millhand.task WHERE fence IS NOT NULL GROUP BY fence HAVING count(*) > 1
UNION ALL
SELECT 'one position', max(id), format('position %s was given %s times', position, count(*))
  FROM millhand.task WHERE position IS NOT NULL GROUP BY position HAVING count(*) > 1
UNION ALL
SELECT 'state', id, format('is %s with position %s, owner %s, started at %s, finished at %s', state,
                           coalesce(position::text, 'none'), coalesce(owner::text, 'none'),
                           coalesce(started_at::text, 'never'), coalesce(finished_at::text, 'never'))
  FROM millhand.task t
 WHERE CASE
       WHEN state = 'scheduled' THEN position IS NOT NULL OR owner IS NOT NULL OR finished_at IS NOT NULL
       WHEN state = 'waiting' THEN position IS NULL OR owner IS NOT NULL OR finished_at IS NOT NULL
       WHEN state IN ('running', 'canceling')
           THEN position IS NULL OR owner IS NULL OR started_at IS NULL OR finished_at IS NOT NULL
       WHEN state IN ('completed', 'failed')
           THEN position IS NULL OR owner IS NOT NULL OR started_at IS NULL OR finished_at IS NULL
       WHEN state = 'canceled'
           THEN owner IS NOT NULL OR finished_at IS NULL OR (position IS NULL AND started_at IS NOT NULL)
       ELSE true END
    OR NOT EXISTS (SELECT FROM millhand.worker w WHERE w.id = t.owner) AND owner IS NOT NULL
UNION ALL
SELECT 'time', id, format('created at %s, started at %s, finished at %s', created_at,
                          coalesce(started_at::text, 'never'), coalesce(finished_at::text, 'never'))
  FROM millhand.task
 WHERE started_at < created_at OR finished_at < created_at OR finished_at < started_at
