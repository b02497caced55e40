-- What a session of type postgres rehearses, in a transaction that is rolled back and in
-- one round trip: it starts and ends a task of its own.
--
-- Its id, its position and its resources are the session's own, so that it draws none
-- from a sequence and no two rehearsals have to do with each other. The position is
-- beyond all others, so that nothing else is looked at. The end lets go of the locks,
-- which a rollback would not.
--
-- Where anything is parked there is no rehearsal: its turns would bring some of that
-- back. (What is parked just then may be locked for a moment; then the safety poll sees
-- to it.)
BEGIN;
INSERT INTO millhand.task (id, name, position, exclusive) OVERRIDING SYSTEM VALUE
SELECT -pid, 'millhand rehearsal', 9223372036854775807 - pid,
       ARRAY['millhand rehearsal ' || pid, 'millhand rehearsal, too, ' || pid]
  FROM pg_backend_pid() AS pid
 WHERE NOT EXISTS (SELECT FROM millhand.parked);
SELECT FROM millhand.task t
 CROSS JOIN LATERAL millhand.next_task(
       t.id, t.name, ARRAY[t.name], t.position, '{}',
       NULL, NULL, NULL, NULL, NULL,
       true, false, false, false)
 WHERE t.id = -pg_backend_pid();
SELECT FROM millhand.task t
 CROSS JOIN LATERAL millhand.next_task(
       t.owner, t.name, ARRAY[t.name], t.position, '{}',
       t.id, 'completed', 'null', NULL, NULL,
       false, false, false, false)
 WHERE t.id = -pg_backend_pid();
ROLLBACK;
