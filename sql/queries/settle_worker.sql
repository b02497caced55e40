-- Settles a worker ($1) of a process that is dead.
SELECT millhand.settle_worker($1::bigint, format('worker %s has gone missing', w.name))
  FROM millhand.worker w WHERE w.id = $1::bigint
