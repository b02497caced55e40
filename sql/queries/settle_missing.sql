-- Settles a worker ($1) whose heartbeat stood still at $2 for its whole ttl.
SELECT millhand.settle_missing($1::bigint, $2::bigint)
