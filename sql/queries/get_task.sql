-- One task by its id ($1); all but its log, which may be long.
SELECT id, name, state, position, exclusive, shared, millhand.shown(args) AS args, worker,
       fence, attempt, millhand.shown(progress) AS progress, millhand.shown(result) AS result,
       error, created_at, started_at, finished_at
  FROM millhand.task
 WHERE id = $1::bigint
