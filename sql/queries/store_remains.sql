-- The log ($3, the end of $4 bytes) that a start ($2) of a task ($1) had written when its
-- worker lost it. The token tells that start from any other, so this comes before or after
-- the end of the task.
UPDATE millhand.task SET log = $3::text, log_size = $4::bigint
 WHERE id = $1::bigint AND fence = $2::bigint AND coalesce(log_size, 0) <= $4::bigint
