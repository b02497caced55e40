-- Worker type pulpcore, which marks the tasks that may start.

ALTER TABLE millhand.task ADD COLUMN unblocked_at timestamptz;
COMMENT ON COLUMN millhand.task.unblocked_at IS
    'Since when no earlier task is in the way, as far as workers of type pulpcore have found; '
    'others do not look at it.';

-- Where workers of type pulpcore look for the next task. With other types it is empty.
CREATE INDEX task_unblocked ON millhand.task (position)
    WHERE unblocked_at IS NOT NULL AND state = 'waiting';

-- What has other parameters now.
DROP FUNCTION IF EXISTS millhand.finish_task(bigint, bigint, text, jsonb, text, text);
-- What returns another type now.
DROP FUNCTION IF EXISTS millhand.park(bigint[], bigint, bigint[]);
DROP FUNCTION IF EXISTS millhand.park_for_others(bigint[]);
DROP FUNCTION IF EXISTS millhand.set_parked(bigint[], boolean);
