-- The oracle: what in the table breaks the rules of order, one row for each
-- violation; none means that all was right. It reads the history after a run
-- and knows nothing of how workers decide.
--
-- order. If two tasks conflict, the later one starts after the final state of the
--     earlier one is committed. Two tasks that share a name conflict by it if
--     one of them needs it exclusively, so for each name: who needs it
--     exclusively starts after all earlier tasks have ended, who shares it
--     after all earlier exclusive ones have. Those that were canceled before
--     they started count too.
--     One transaction may end a task and start the next one, which then both
--     become visible at once: the two times come from one clock, in that order.
-- one start. A task starts at most once.
-- state. The columns say the same as the state.
WITH ended AS MATERIALIZED (
    SELECT id, position, exclusive, shared, started_at,
           -- In microseconds, to be kept beside an id; incomplete tasks have
           -- not ended for a long time to come.
           CASE WHEN finished_at IS NULL THEN 9223372036854775807
                ELSE (extract(epoch FROM finished_at) * 1000000)::bigint
           END AS end_time
      FROM millhand.task
     WHERE position IS NOT NULL
), needed AS (
    SELECT id, position, started_at, end_time, name, true AS exclusively
      FROM ended CROSS JOIN LATERAL unnest(exclusive) AS name
     UNION ALL
    SELECT id, position, started_at, end_time, name, false
      FROM ended CROSS JOIN LATERAL unnest(shared) AS name
     WHERE name <> ALL (exclusive)
), seen AS (
    -- For each need: when the earlier ones that conflict with it had all
    -- ended, and which one was the last.
    SELECT id, name, started_at,
           CASE WHEN exclusively
                THEN max(ARRAY[end_time, id]) OVER earlier
                ELSE max(ARRAY[end_time, id]) FILTER (WHERE exclusively) OVER earlier
           END AS last
      FROM needed
    WINDOW earlier AS (PARTITION BY name ORDER BY position
                       ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
), violation AS (
    SELECT 'order' AS rule, id AS task, last[2] AS other,
           format('started at %s, but the earlier one of resource `%s`, now %s, ended %s',
                  started_at, left(name, 100),
                  (SELECT state FROM millhand.task other WHERE other.id = last[2]),
                  coalesce('at ' || to_timestamp(nullif(last[1], 9223372036854775807) / 1000000.0),
                           'never')) AS detail
      FROM seen
     WHERE last[1] > (extract(epoch FROM started_at) * 1000000)::bigint
     UNION ALL
    SELECT 'one start', id, NULL,
           format('%s attempts, fencing token %s', attempt, coalesce(fence::text, 'none'))
      FROM millhand.task
     WHERE attempt > 1 OR (started_at IS NOT NULL AND (attempt < 1 OR fence IS NULL))
     UNION ALL
    SELECT 'one start', max(id), min(id), format('two starts with fence %s', fence)
      FROM millhand.task WHERE fence IS NOT NULL GROUP BY fence HAVING count(*) > 1
     UNION ALL
    SELECT 'one position', max(id), min(id), format('two tasks have position %s', position)
      FROM millhand.task WHERE position IS NOT NULL GROUP BY position HAVING count(*) > 1
     UNION ALL
    SELECT 'state', id, NULL,
           format('%s, but position %s, owner %s, attempt %s, created %s, started %s, finished %s',
                  state, coalesce(position::text, 'none'), coalesce(owner::text, 'none'), attempt,
                  created_at, coalesce(started_at::text, 'never'), coalesce(finished_at::text, 'never'))
      FROM millhand.task
     WHERE CASE state
           WHEN 'scheduled' THEN position IS NOT NULL OR owner IS NOT NULL
           WHEN 'waiting' THEN position IS NULL OR owner IS NOT NULL
           WHEN 'running' THEN position IS NULL OR owner IS NULL OR started_at IS NULL OR attempt < 1
           WHEN 'canceling' THEN position IS NULL OR owner IS NULL OR started_at IS NULL OR attempt < 1
           WHEN 'completed' THEN owner IS NOT NULL OR started_at IS NULL OR attempt < 1 OR error IS NOT NULL
           WHEN 'failed' THEN owner IS NOT NULL OR started_at IS NULL OR attempt < 1 OR error IS NULL
           WHEN 'canceled' THEN owner IS NOT NULL
           ELSE true
           END
        OR (finished_at IS NOT NULL) <> (state IN ('completed', 'failed', 'canceled'))
        OR (position IS NULL AND started_at IS NOT NULL)
        OR (owner IS NOT NULL AND owner NOT IN (SELECT id FROM millhand.worker))
        OR started_at < created_at OR finished_at < created_at OR finished_at < started_at
)
SELECT rule, task, other, detail FROM violation ORDER BY rule, task
