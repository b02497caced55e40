-- Every advisory lock of millhand, in one place. Workers of type redis use none
-- but register_lock, and those of type pulpcore hold none on resources. Workers of
-- several versions meet on these numbers: never change them.
--
--   key                       held by                          mode and span
--   resource_lock(name)       the worker that runs a task      session; shared or exclusive as named
--   task_lock(id)             the worker that runs the task    session, exclusive
--   worker_lock(id)           a worker, on its own connection  session, exclusive
--   place_lock(name)          who dispatches                   transaction; shared or exclusive as named
--   bell_lock()               an idle worker that waits to be woken   session, shared
--   dispatching_lock()        who dispatches                   transaction, shared
--   register_lock()           who registers a worker           transaction, exclusive
--   unblocking_lock()         who marks what may start, type pulpcore   transaction, exclusive
--   metrics_lock()            who measures the queue, type pulpcore     transaction, exclusive
--
-- Single 64-bit keys: hashes with a seed each, so that they miss each other
-- and the small numbers that other programs like to use. A collision costs a
-- wait, never the order rule, which rests on the rows alone.

CREATE OR REPLACE FUNCTION millhand.resource_lock(name text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$SELECT pg_catalog.hashtextextended(coalesce($1, ''), 7301)$$;

CREATE OR REPLACE FUNCTION millhand.task_lock(id bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashint8extended($1, 7302)';

CREATE OR REPLACE FUNCTION millhand.worker_lock(id bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashint8extended($1, 7303)';

-- 1,024 buckets, so that one bulk dispatch over any number of resources fits
-- into the server's lock table (6,400 entries by default). Two names in one
-- bucket make their dispatchers wait for each other's commit, nothing more.
CREATE OR REPLACE FUNCTION millhand.place_lock(name text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
'SELECT pg_catalog.hashint8extended(pg_catalog.hashtextextended($1, 7304) & 1023, 7304)';

CREATE OR REPLACE FUNCTION millhand.bell_lock() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashint8extended(1, 7305)';

CREATE OR REPLACE FUNCTION millhand.dispatching_lock() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashint8extended(2, 7305)';

CREATE OR REPLACE FUNCTION millhand.register_lock() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashint8extended(3, 7305)';

CREATE OR REPLACE FUNCTION millhand.unblocking_lock() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashint8extended(4, 7305)';

CREATE OR REPLACE FUNCTION millhand.metrics_lock() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashint8extended(5, 7305)';
