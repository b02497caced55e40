-- Owners of tasks that are no workers: a server that lost commits may have kept the start
-- of a task and not the registration, or their worker is being settled just now. By the
-- way, notes go that are of no more use, because nothing is parked.
WITH forgotten AS (
    DELETE FROM millhand.freed WHERE NOT EXISTS (SELECT FROM millhand.parked)
)
SELECT DISTINCT t.owner FROM millhand.task t
 WHERE t.owner IS NOT NULL AND NOT EXISTS (SELECT FROM millhand.worker w WHERE w.id = t.owner)
