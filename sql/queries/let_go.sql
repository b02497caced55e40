-- Lets go of every lock of this session but its worker's ($1). A turn that
-- failed leaves behind what it had locked until then, the bell too: session
-- locks know nothing of a rollback.
-- For a moment the worker's own lock is free as well. Who sees that takes the
-- worker for lost, which costs it its claim, never the order.
SELECT pg_advisory_unlock_all(), pg_advisory_lock(millhand.worker_lock($1::bigint))
