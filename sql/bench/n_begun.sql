-- How many of the tasks in the table have been started.
SELECT count(*) AS n FROM millhand.task WHERE started_at IS NOT NULL
