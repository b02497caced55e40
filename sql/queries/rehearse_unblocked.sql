-- The same for type pulpcore, whose tasks are marked; it marks none itself. The reasons are
-- in rehearse.sql.
BEGIN;
INSERT INTO millhand.task (id, name, position, exclusive, unblocked_at) OVERRIDING SYSTEM VALUE
SELECT -pid, 'millhand rehearsal', 9223372036854775807 - pid,
       ARRAY['millhand rehearsal ' || pid, 'millhand rehearsal, too, ' || pid], clock_timestamp()
  FROM pg_backend_pid() AS pid
 WHERE NOT EXISTS (SELECT FROM millhand.parked);
SELECT FROM millhand.task t
 CROSS JOIN LATERAL millhand.unblocked_turn(
       t.id, t.name, ARRAY[t.name], t.position, '{}',
       NULL, NULL, NULL, NULL, NULL,
       true, false, false, false, false)
 WHERE t.id = -pg_backend_pid();
SELECT FROM millhand.task t
 CROSS JOIN LATERAL millhand.unblocked_turn(
       t.owner, t.name, ARRAY[t.name], t.position, '{}',
       t.id, 'completed', 'null', NULL, NULL,
       false, false, false, false, false)
 WHERE t.id = -pg_backend_pid();
ROLLBACK;
