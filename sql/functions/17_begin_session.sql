-- Called as each session of a worker process begins, before it can start anything.
--
-- Fencing tokens never go back. A standby that is promoted may lack the last draws of
-- its primary, and would draw those numbers again. Each promotion begins a new timeline,
-- so the first session on one lifts the sequence by more than can have been lost: 2^32
-- draws are ten days of 5,000 starts a second. (The numbers stay exact as JSON, below
-- 2^53, for two million failovers.) Ids of workers are lifted, too, by a million: a thread
-- that comes back settles what it had under its old one, which nobody else may have.
--
-- It runs with the rights of who made it: a worker needs none for that.
--
-- On a standby it fails as any write would there: who works needs a primary.
CREATE OR REPLACE FUNCTION millhand.begin_session() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    known bigint;
    now_on bigint;
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'this server is a standby, where all transactions are read-only transactions'
            USING ERRCODE = 'read_only_sql_transaction';
    END IF;
    BEGIN
        -- The first eight digits of the file that is being written to.
        now_on := ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint;
    EXCEPTION WHEN insufficient_privilege OR feature_not_supported THEN
        -- Some providers do not tell. They do not lose commits either.
        RETURN;
    END;
    SELECT s.timeline INTO known FROM millhand.server s;
    IF known = now_on THEN
        RETURN;
    END IF;
    -- One at a time, and whoever waited looks again: a second lift would be in vain.
    PERFORM FROM millhand.server FOR UPDATE;
    SELECT s.timeline INTO known FROM millhand.server s;
    IF known IS DISTINCT FROM now_on THEN
        PERFORM setval('millhand.task_fence', f.last_value + 4294967296) FROM millhand.task_fence f;
        PERFORM setval('millhand.worker_id_seq', w.last_value + 1000000) FROM millhand.worker_id_seq w;
        UPDATE millhand.server SET timeline = now_on;
    END IF;
END
$$;
