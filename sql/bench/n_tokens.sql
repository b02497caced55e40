-- How many fencing tokens were ever drawn: one at each start, and at each that is rehearsed.
SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END AS n FROM millhand.task_fence
