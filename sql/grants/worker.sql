-- Runs tasks, settles dead workers, and dispatches what its handlers ask for.
GRANT USAGE ON SCHEMA millhand TO :"role";
GRANT SELECT ON millhand.migration, millhand.server TO :"role";
GRANT SELECT, INSERT, UPDATE ON millhand.task TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON millhand.worker, millhand.parked, millhand.freed TO :"role";
-- UPDATE mends those that lag behind the rows.
GRANT USAGE, SELECT, UPDATE ON SEQUENCE millhand.task_position, millhand.task_fence,
    millhand.task_id_seq, millhand.worker_id_seq TO :"role";
