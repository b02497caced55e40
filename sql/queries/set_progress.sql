-- Progress ($3) of a task ($1) that this worker ($2) still owns. Touches no
-- indexed column, so it is a cheap update.
UPDATE millhand.task SET progress = $3::jsonb
 WHERE id = $1::bigint AND owner = $2::bigint AND state IN ('running', 'canceling')
