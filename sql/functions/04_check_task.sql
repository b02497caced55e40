-- Refuses what no worker could run, with one line that names it.
CREATE OR REPLACE FUNCTION millhand.check_task(
    name text, args jsonb, exclusive text[], shared text[]
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    resource text;
BEGIN
    IF coalesce(name, '') = '' THEN
        RAISE EXCEPTION 'a task needs a name' USING ERRCODE = 'check_violation';
    END IF;
    IF pg_catalog.pg_column_size(args) > 1048576 THEN
        RAISE EXCEPTION 'the arguments of task `%` take % bytes, at most 1048576 (1 MiB) are allowed; '
            'store large data elsewhere and pass where it is', pg_catalog.left(name, 100),
            pg_catalog.pg_column_size(args)
            USING ERRCODE = 'check_violation';
    END IF;
    IF pg_catalog.cardinality(exclusive) + pg_catalog.cardinality(shared) > 256 THEN
        RAISE EXCEPTION 'task `%` names % resources, at most 256 are allowed; '
            'name a larger thing that contains them', pg_catalog.left(name, 100),
            pg_catalog.cardinality(exclusive) + pg_catalog.cardinality(shared)
            USING ERRCODE = 'check_violation';
    END IF;
    IF pg_catalog.array_ndims(exclusive) > 1 OR pg_catalog.array_ndims(shared) > 1 THEN
        RAISE EXCEPTION 'task `%` names its resources in lists of lists; one list is expected',
            pg_catalog.left(name, 100) USING ERRCODE = 'check_violation';
    END IF;
    FOREACH resource IN ARRAY exclusive || shared LOOP
        IF coalesce(resource, '') = '' THEN
            RAISE EXCEPTION 'task `%` names an empty resource', pg_catalog.left(name, 100)
                USING ERRCODE = 'check_violation';
        ELSIF pg_catalog.length(resource) > 1000 THEN
            RAISE EXCEPTION 'task `%` names a resource of % characters (`%...`), at most 1000 are allowed',
                pg_catalog.left(name, 100), pg_catalog.length(resource), pg_catalog.left(resource, 20)
                USING ERRCODE = 'check_violation';
        END IF;
    END LOOP;
END
$$;

-- Whether a task is as most are: nothing to refuse or to put in order, and two
-- resources at most. `names` are the exclusive and the shared ones together.
-- Postgres puts this expression into the statement that asks (a function that
-- promised to be IMMUTABLE would be called).
CREATE OR REPLACE FUNCTION millhand.is_plain(
    name text, args jsonb, exclusive text[], shared text[], names text[]
) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT $1 <> '' AND pg_catalog.pg_column_size($2) <= 1048576 AND pg_catalog.cardinality($5) <= 2
           AND '' <> ALL ($5) AND pg_catalog.length(pg_catalog.array_to_string($5, '')) <= 1000
           AND ($5[1] IS DISTINCT FROM $5[2] OR $5 = '{}')
           AND coalesce(pg_catalog.array_lower($3, 1), 1) = 1
           AND coalesce(pg_catalog.array_lower($4, 1), 1) = 1
$$;

-- The names of all resources, the exclusive ones first; null if one of the lists
-- is a list of lists.
CREATE OR REPLACE FUNCTION millhand.all_names(exclusive text[], shared text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN pg_catalog.array_ndims($1) > 1 OR pg_catalog.array_ndims($2) > 1 THEN NULL
           ELSE $1 || $2 END
$$;
