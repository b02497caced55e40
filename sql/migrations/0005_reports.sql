-- What tasks say while they run is stored meanwhile; who leaves housekeeping to others.

-- What has other parameters now.
DROP FUNCTION IF EXISTS millhand.finish_task(bigint, bigint, text, jsonb, text, text, boolean);

ALTER TABLE millhand.task ADD COLUMN log_size bigint;
COMMENT ON COLUMN millhand.task.log_size IS
    'How many bytes of text its command has written to stderr in all; `log` is the end of them.';

ALTER TABLE millhand.worker ADD COLUMN auxiliary boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN millhand.worker.auxiliary IS
    'Whether it leaves it to others to sweep workers that have died.';
