-- Whether anything is left to wait for.
SELECT EXISTS (SELECT FROM millhand.task WHERE state IN ('waiting', 'running', 'canceling'))
