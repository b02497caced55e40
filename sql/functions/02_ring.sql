-- Whether an idle worker, of any process, waits to be woken.
-- It holds bell_lock in shared mode, so an exclusive try that succeeds says
-- that nobody does. Two who try at the same instant see each other and get a
-- wrong yes, which is harmless.
CREATE OR REPLACE FUNCTION millhand.bell_hangs() RETURNS boolean
LANGUAGE sql VOLATILE AS
'SELECT NOT (pg_catalog.pg_try_advisory_lock(millhand.bell_lock())
             AND pg_catalog.pg_advisory_unlock(millhand.bell_lock()))';

-- Wakes the idle workers that wait for it, at the caller's commit. A NOTIFY
-- makes commits queue for one server-wide lock (it more than halves the rate
-- of dispatch), so it is sent only while somebody waits for it.
CREATE OR REPLACE FUNCTION millhand.ring() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF millhand.bell_hangs() THEN
        PERFORM pg_catalog.pg_notify('millhand_wakeup', '');
    END IF;
END
$$;
