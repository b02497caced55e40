-- What a session of type postgres rehearses, in a transaction that is rolled back and in
-- one round trip: it starts a task of its own, looks in vain for another one and hangs
-- the bell; then it takes that down, ends the first and starts a second one, which had to
-- wait for it, and ends that.
--
-- Their ids, positions and resources are the session's own, so that it draws none
-- from a sequence and no two rehearsals have to do with each other. The positions are
-- beyond all others, so that nothing else is looked at. The ends let go of the locks,
-- which a rollback would not. (Meanwhile the bell hangs for nobody; at most somebody
-- looks in vain.)
--
-- Where anything is parked there is no rehearsal: its turns would bring some of that
-- back. (What is parked just then may be locked for a moment; then the safety poll sees
-- to it.)
BEGIN;
INSERT INTO millhand.task (id, name, position, exclusive) OVERRIDING SYSTEM VALUE
SELECT nth - 2 * pid, 'millhand rehearsal', 9223372036854775806 - 2 * pid + nth,
       ARRAY['millhand rehearsal ' || pid, 'millhand rehearsal, too, ' || pid]
  FROM pg_backend_pid() AS pid
 CROSS JOIN generate_series(0, 1) AS nth
 WHERE NOT EXISTS (SELECT FROM millhand.parked);
SELECT FROM millhand.task t
 CROSS JOIN LATERAL millhand.next_task(
       t.id, t.name, ARRAY[t.name], t.position, '{}',
       NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       true, true, false, false)
 WHERE t.id = -2 * pg_backend_pid();
SELECT FROM millhand.task t
 CROSS JOIN LATERAL millhand.next_task(
       t.id, t.name, ARRAY[t.name], t.position, '{}',
       NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       true, false, false, true)
 WHERE t.id = -2 * pg_backend_pid();
SELECT FROM millhand.task t
 CROSS JOIN LATERAL millhand.next_task(
       t.owner, t.name, ARRAY[t.name], t.position, '{}',
       t.id, 'completed', 'null', NULL, NULL, NULL, NULL,
       true, true, true, false)
 WHERE t.id = -2 * pg_backend_pid();
SELECT FROM millhand.task t
 CROSS JOIN LATERAL millhand.next_task(
       t.owner, t.name, ARRAY[t.name], t.position, '{}',
       t.id, 'completed', 'null', NULL, NULL, NULL, NULL,
       false, false, false, false)
 WHERE t.id = 1 - 2 * pg_backend_pid();
ROLLBACK;
