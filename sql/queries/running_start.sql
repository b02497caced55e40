-- The position and the resources of a task ($1) that runs under this fencing token ($2).
SELECT position, exclusive, shared FROM millhand.task
 WHERE id = $1::bigint AND fence = $2::bigint AND state IN ('running', 'canceling')
