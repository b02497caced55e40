-- What running tasks ($1, of these starts $2) have to say: progress ($3), logs ($4) and the
-- sizes of these ($5); null where there is no news. Returns those whose rows it changed. One
-- whose row is locked, as by the turn that ends it, or that has ended, is passed over: this
-- waits for nobody. (`finished_at`, because no index but the primary key shall serve it: the
-- others are thick with remains.)
UPDATE millhand.task t
   SET progress = coalesce(r.progress, t.progress), log = coalesce(r.log, t.log),
       log_size = coalesce(r.log_size, t.log_size)
  FROM (SELECT own.ctid AS place, given.*
          FROM unnest($1::bigint[], $2::bigint[], $3::jsonb[], $4::text[], $5::bigint[])
               AS given (task, fence, progress, log, log_size)
          JOIN millhand.task own
            ON own.id = given.task AND own.fence = given.fence AND own.finished_at IS NULL
           FOR NO KEY UPDATE OF own SKIP LOCKED) AS r
 WHERE t.ctid = r.place
RETURNING t.id
