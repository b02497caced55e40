-- How many tasks were ever started: a fencing token is drawn at each start.
SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END AS n FROM millhand.task_fence
