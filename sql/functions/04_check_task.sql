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
    IF pg_column_size(args) > 1048576 THEN
        RAISE EXCEPTION 'the arguments of task `%` take % bytes, at most 1048576 (1 MiB) are allowed; '
            'store large data elsewhere and pass where it is', left(name, 100), pg_column_size(args)
            USING ERRCODE = 'check_violation';
    END IF;
    IF cardinality(exclusive) + cardinality(shared) > 256 THEN
        RAISE EXCEPTION 'task `%` names % resources, at most 256 are allowed; '
            'name a larger thing that contains them', left(name, 100),
            cardinality(exclusive) + cardinality(shared)
            USING ERRCODE = 'check_violation';
    END IF;
    IF array_ndims(exclusive) > 1 OR array_ndims(shared) > 1 THEN
        RAISE EXCEPTION 'task `%` names its resources in lists of lists; one list is expected',
            left(name, 100) USING ERRCODE = 'check_violation';
    END IF;
    FOREACH resource IN ARRAY exclusive || shared LOOP
        IF coalesce(resource, '') = '' THEN
            RAISE EXCEPTION 'task `%` names an empty resource', left(name, 100)
                USING ERRCODE = 'check_violation';
        ELSIF length(resource) > 1000 THEN
            RAISE EXCEPTION 'task `%` names a resource of % characters (`%...`), at most 1000 are allowed',
                left(name, 100), length(resource), left(resource, 20)
                USING ERRCODE = 'check_violation';
        END IF;
    END LOOP;
END
$$;
