-- Who leaves housekeeping to others.

ALTER TABLE millhand.worker ADD COLUMN auxiliary boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN millhand.worker.auxiliary IS
    'Whether it leaves it to others to sweep workers that have died.';
