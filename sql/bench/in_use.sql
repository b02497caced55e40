-- Whether the database has tasks or workers.
SELECT EXISTS (SELECT FROM millhand.task) OR EXISTS (SELECT FROM millhand.worker)
