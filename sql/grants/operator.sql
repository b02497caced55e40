-- Sees what a reader sees, and cancels.
GRANT USAGE ON SCHEMA millhand TO :"role";
GRANT SELECT ON millhand.migration, millhand.task, millhand.worker TO :"role";
GRANT UPDATE (state, parked, finished_at) ON millhand.task TO :"role";
GRANT SELECT, DELETE ON millhand.parked TO :"role";
GRANT SELECT, INSERT (resource) ON millhand.freed TO :"role";
