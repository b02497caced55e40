-- The log ($3, the end of $4 bytes) that a start ($2) of a task ($1) had written when its
-- worker lost it; nothing while its row is locked, which `is_locked` says. The token tells
-- that start from any other, so this comes before or after the end of the task.
WITH own AS (
    SELECT t.ctid AS place FROM millhand.task t
     WHERE t.id = $1::bigint AND t.fence = $2::bigint AND coalesce(t.log_size, 0) <= $4::bigint
       FOR NO KEY UPDATE SKIP LOCKED
), stored AS (
    UPDATE millhand.task t SET log = $3::text, log_size = $4::bigint
      FROM own WHERE t.ctid = own.place
    RETURNING t.id
)
SELECT NOT EXISTS (SELECT FROM stored)
       AND EXISTS (SELECT FROM millhand.task t
                    WHERE t.id = $1::bigint AND t.fence = $2::bigint
                      AND coalesce(t.log_size, 0) <= $4::bigint) AS is_locked
