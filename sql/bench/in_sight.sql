-- How many waiting tasks the looks of workers meet.
SELECT count(*) FROM millhand.task WHERE state IN ('waiting', 'running', 'canceling') AND NOT parked
