-- Whether anything is left to wait for. This is asked all along beside what is measured,
-- so by the looks' index, and from its end: what is there has not been worked off yet.
SELECT (SELECT max(position) FROM millhand.task
         WHERE state IN ('waiting', 'running', 'canceling') AND NOT parked) IS NOT NULL
       OR EXISTS (SELECT FROM millhand.parked)
