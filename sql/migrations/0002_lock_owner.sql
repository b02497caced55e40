-- Worker type redis, whose locks are not in the database.

ALTER TABLE millhand.worker ADD COLUMN lock_owner text;
COMMENT ON COLUMN millhand.worker.lock_owner IS
    'The owner of this worker''s locks in the lock store; null if its session holds them.';

-- What has other parameters now, or is of no more use. (A fresh database never had
-- it.)
DROP FUNCTION IF EXISTS millhand.register_worker(text, text, text, text, integer, interval, bigint, bigint);
DROP FUNCTION IF EXISTS millhand.sweep_lock();
