-- JSON that is longer as text than in the table: `1e131071` takes a few bytes there and
-- 131,072 as text, so that the limit on what is stored (check_task) is none for the
-- text, and beyond 1 GB Postgres can neither write nor send it.

-- The text, or null if it takes more than `most` bytes. (What catches errors cannot run in
-- a parallel worker, nor can what calls it.)
CREATE OR REPLACE FUNCTION millhand.long_json_text(json jsonb, most integer) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    json_text text;
BEGIN
    json_text := json::text;
    RETURN CASE WHEN octet_length(json_text) <= most THEN json_text END;
EXCEPTION WHEN program_limit_exceeded OR out_of_memory THEN
    RETURN NULL;
END
$$;

-- Arguments as text, for a worker; null if that is too long to be handed on. (Up to a
-- thousand bytes stored, even compressed, it is not, and asking costs nothing.)
CREATE OR REPLACE FUNCTION millhand.args_text(args jsonb) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN pg_column_size($1) <= 1000 THEN $1::text
                ELSE millhand.long_json_text($1, 16777216) END
$$;

-- What can be shown of JSON: all, or a note.
CREATE OR REPLACE FUNCTION millhand.shown(json jsonb) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN pg_column_size($1) > 1000 AND millhand.long_json_text($1, 1000000000) IS NULL
                THEN '"(too long to be shown)"' ELSE $1 END
$$;
