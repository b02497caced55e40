-- Progress ($3) of a task ($1) that this worker ($2) still owns. Touches no
-- indexed column, so it is a cheap update; the primary key is the only index
-- that can serve it.
UPDATE millhand.task SET progress = $3::jsonb
 WHERE id = $1::bigint AND owner IS NOT DISTINCT FROM $2::bigint
