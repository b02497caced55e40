-- Whether the tasks from $1 to $2 have ended.
SELECT NOT EXISTS (SELECT FROM millhand.task WHERE id BETWEEN $1::bigint AND $2::bigint AND finished_at IS NULL)
