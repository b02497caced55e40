-- Refuses a task (name, args, exclusive, shared) that could not be dispatched,
-- as dispatch itself does, without creating it.
SELECT millhand.check_task($1::text, $2::jsonb, $3::text[], $4::text[])
