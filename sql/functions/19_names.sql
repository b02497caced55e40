-- Makes one list of names of what no dispatch would write: lists of lists, which stop
-- every look, and nulls. Called by whoever stumbles over one; a CHECK would cost each
-- task something. Returns how many tasks it mended.
CREATE OR REPLACE FUNCTION millhand.mend_names() RETURNS bigint
LANGUAGE sql AS $$
    WITH mended AS (
        UPDATE millhand.task
           SET exclusive = ARRAY(SELECT name FROM unnest(exclusive) AS name WHERE name IS NOT NULL),
               shared = ARRAY(SELECT name FROM unnest(shared) AS name WHERE name IS NOT NULL)
         WHERE state IN ('waiting', 'running', 'canceling')
           AND (array_ndims(exclusive) > 1 OR array_ndims(shared) > 1)
        RETURNING id
    )
    SELECT count(*) FROM mended
$$;
