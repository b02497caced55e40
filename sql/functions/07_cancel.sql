-- Cancels a task and returns the state that it is in then; null if there is
-- no such task. It is part of the caller's transaction.
--
-- What has not started is canceled at once. What runs becomes `canceling`, is
-- told to its worker, and ends when the worker has stopped it. A final task
-- keeps its state. The two updates alternate until one of them hits, because
-- a worker may start or end the task between them; a task goes through each
-- state once, so this ends.
CREATE OR REPLACE FUNCTION millhand.cancel(id bigint) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
#variable_conflict use_column
DECLARE
    found_state text;
    ended record;
    running record;
BEGIN
    -- As in dispatch: whoever hangs a bell before this commits looks again.
    PERFORM pg_advisory_xact_lock_shared(millhand.dispatching_lock());
    LOOP
        UPDATE millhand.task SET state = 'canceled', parked = false, finished_at = clock_timestamp()
         WHERE id = cancel.id AND state IN ('scheduled', 'waiting')
        RETURNING position, exclusive, shared INTO ended;
        IF FOUND THEN
            -- Tasks behind it may be free now.
            DELETE FROM millhand.parked WHERE position = ended.position;
            PERFORM millhand.note_freed(ended.exclusive || ended.shared, FOUND);
            PERFORM millhand.ring();
            RETURN 'canceled';
        END IF;
        UPDATE millhand.task SET state = 'canceling'
         WHERE id = cancel.id AND state = 'running'
        RETURNING owner INTO running;
        IF FOUND THEN
            IF EXISTS (SELECT FROM millhand.worker w WHERE w.id = running.owner AND w.lock_owner IS NULL) THEN
                PERFORM pg_notify('millhand_cancel', cancel.id::text);
            END IF;
            RETURN 'canceling';
        END IF;
        SELECT state INTO found_state FROM millhand.task WHERE id = cancel.id;
        IF NOT FOUND OR found_state NOT IN ('scheduled', 'waiting', 'running') THEN
            RETURN found_state;
        END IF;
    END LOOP;
END
$$;
