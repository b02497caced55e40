-- Sees tasks, with their arguments, results and logs, and workers.
GRANT USAGE ON SCHEMA millhand TO :"role";
GRANT SELECT ON millhand.migration, millhand.task, millhand.worker TO :"role";
