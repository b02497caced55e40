-- The first incomplete tasks, at most $3, in one snapshot; $1 and $2 are low and
-- stragglers (functions/10_sight.sql). `may_come_back` says that bring_back could
-- show more to a worker with the handlers $4. Without tasks it is alone in its row.
SELECT p.may_come_back, t.task_position, t.id, t.name, t.state, t.exclusive, t.shared, t.behind_parked
  FROM (SELECT EXISTS (SELECT FROM millhand.parked)
               AND (EXISTS (SELECT FROM millhand.freed)
                    OR EXISTS (SELECT FROM millhand.parked WHERE handler = ANY ($4::text[])))
               AS may_come_back) AS p
  LEFT JOIN LATERAL
       (SELECT s.task_position, s.id, s.name, s.state, s.exclusive, s.shared,
               -- (Null if nothing is parked, and asked only behind what is.)
               CASE s.task_position > (SELECT parked.position FROM millhand.parked
                                        ORDER BY parked.position LIMIT 1)
               WHEN true THEN
                   (SELECT b.is_behind FROM millhand.behind_parked(
                        s.exclusive, s.shared, s.task_position) AS b)
               END AS behind_parked
          FROM millhand.in_sight($1::bigint, $2::bigint[]) AS s
         ORDER BY s.task_position LIMIT $3::bigint) AS t ON true
