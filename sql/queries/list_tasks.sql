-- The newest tasks of these states ($1, all if empty) and this name ($2, any
-- if null), at most $3. Served by the primary key, from its end.
SELECT id, name, state, position, exclusive, shared, millhand.shown(args) AS args, worker,
       fence, attempt, millhand.shown(progress) AS progress, millhand.shown(result) AS result,
       error, created_at, started_at, finished_at
  FROM millhand.task
 WHERE ($1::text[] = '{}' OR state = ANY ($1::text[]))
   AND ($2::text IS NULL OR name = $2::text)
 ORDER BY id DESC LIMIT $3::bigint
