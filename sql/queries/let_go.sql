-- Lets go of every lock of this session but its worker's ($1). A turn that
-- failed leaves behind what it had locked until then, the bell too: session
-- locks know nothing of a rollback.
-- The transaction holds the worker's lock meanwhile: nobody takes it for dead.
SELECT pg_advisory_xact_lock(millhand.worker_lock($1::bigint)), pg_advisory_unlock_all(),
       pg_advisory_lock(millhand.worker_lock($1::bigint))
