-- The same for type pulpcore, whose tasks are marked. Who looks in vain walks, as an
-- auxiliary worker never will, unless somebody else does just now; that comes last
-- here, because nobody else can walk from then until the rollback. The reasons for all
-- else are in rehearse.sql.
BEGIN;
INSERT INTO millhand.task (id, name, position, exclusive, unblocked_at) OVERRIDING SYSTEM VALUE
SELECT nth - 2 * pid, 'millhand rehearsal', 9223372036854775806 - 2 * pid + nth,
       ARRAY['millhand rehearsal ' || pid, 'millhand rehearsal, too, ' || pid],
       CASE nth WHEN 0 THEN clock_timestamp() END
  FROM pg_backend_pid() AS pid
 CROSS JOIN generate_series(0, 1) AS nth
 WHERE NOT EXISTS (SELECT FROM millhand.parked);
SELECT FROM millhand.task t
 CROSS JOIN LATERAL millhand.unblocked_turn(
       t.id, t.name, ARRAY[t.name], t.position, '{}',
       NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       true, true, false, false, false)
 WHERE t.id = -2 * pg_backend_pid();
UPDATE millhand.task SET unblocked_at = clock_timestamp() WHERE id = 1 - 2 * pg_backend_pid();
SELECT FROM millhand.task t
 CROSS JOIN LATERAL millhand.unblocked_turn(
       t.owner, t.name, ARRAY[t.name], t.position, '{}',
       t.id, 'completed', 'null', NULL, NULL, NULL, NULL,
       true, true, false, false, false)
 WHERE t.id = -2 * pg_backend_pid();
SELECT FROM millhand.task t
 CROSS JOIN LATERAL millhand.unblocked_turn(
       t.owner, t.name, ARRAY[t.name], t.position, '{}',
       t.id, 'completed', 'null', NULL, NULL, NULL, NULL,
       true, false, false, true, true)
 WHERE t.id = 1 - 2 * pg_backend_pid();
SELECT FROM millhand.task t
 CROSS JOIN LATERAL millhand.unblocked_turn(
       t.id, t.name, ARRAY[t.name], t.position, '{}',
       NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       false, false, true, false, true)
 WHERE t.id = 1 - 2 * pg_backend_pid();
ROLLBACK;
