-- Those of these tasks ($1) that are not final; without a position they come last.
SELECT id, coalesce(position, 9223372036854775807), exclusive, shared FROM millhand.task
 WHERE id = ANY ($1::bigint[]) AND state <> ALL ('{completed,failed,canceled}')
 ORDER BY 2
