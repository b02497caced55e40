-- The newest tasks of these states ($1, all if empty), this name ($2), with this resource
-- ($3), of this worker ($4), dispatched since then ($5), any if null, at most $6. Served by
-- the primary key, from its end; client.rs reads it from its beginning, too.
SELECT id, name, state, position, exclusive, shared, millhand.shown(args) AS args, worker,
       fence, attempt, millhand.shown(progress) AS progress, millhand.shown(result) AS result,
       error, created_at, started_at, finished_at
  FROM millhand.task
 WHERE ($1::text[] = '{}' OR state = ANY ($1::text[]))
   AND ($2::text IS NULL OR name = $2::text)
   AND ($3::text IS NULL OR $3::text = ANY (exclusive) OR $3::text = ANY (shared))
   AND ($4::text IS NULL OR worker = $4::text)
   AND ($5::timestamptz IS NULL OR created_at >= $5::timestamptz)
 ORDER BY id DESC LIMIT $6::bigint
