-- What was found to break under faults.

-- Whoever copies or repairs the sequences of a database finds those that belong to
-- columns.
ALTER SEQUENCE millhand.task_position OWNED BY millhand.task.position;
ALTER SEQUENCE millhand.task_fence OWNED BY millhand.task.fence;
