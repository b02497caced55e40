-- How many tasks are in this state ($1).
SELECT count(*) FROM millhand.task WHERE state = $1::text
