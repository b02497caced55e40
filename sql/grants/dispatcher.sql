-- Creates tasks, and reads none: who waits for their ends is a reader, too.
GRANT USAGE ON SCHEMA millhand TO :"role";
GRANT SELECT ON millhand.migration TO :"role";
GRANT SELECT (lock_owner) ON millhand.worker TO :"role";
GRANT SELECT (id), INSERT (name, args, exclusive, shared, position) ON millhand.task TO :"role";
GRANT USAGE ON SEQUENCE millhand.task_position TO :"role";
