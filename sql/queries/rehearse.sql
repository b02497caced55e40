-- The task of a rehearsal, in a transaction that is rolled back: its id ($1), a handler
-- that the worker has ($2), its position ($3), and whether it is marked for type pulpcore
-- ($4). Its two resources are named after it.
INSERT INTO millhand.task (id, name, position, exclusive, unblocked_at) OVERRIDING SYSTEM VALUE
VALUES ($1::bigint, $2::text, $3::bigint,
        ARRAY['millhand rehearsal ' || $1::bigint, 'millhand rehearsal, too, ' || $1::bigint],
        CASE WHEN $4::boolean THEN clock_timestamp() END)
