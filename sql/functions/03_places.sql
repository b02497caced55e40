-- What a task needs, a row for each resource.
-- Postgres puts this query into the one that asks.
CREATE OR REPLACE FUNCTION millhand.needs(exclusive text[], shared text[])
RETURNS TABLE (resource text, is_exclusive boolean)
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT r, true FROM pg_catalog.unnest($1) AS r
     UNION ALL
    SELECT r, false FROM pg_catalog.unnest($2) AS r
$$;

-- Takes the dispatch locks of these resources until the transaction ends, in
-- the order of their keys, so that two calls cannot deadlock. (Several calls
-- in one transaction can; Postgres then ends one of the two.)
CREATE OR REPLACE FUNCTION millhand.lock_places(exclusive text[], shared text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM CASE WHEN place.exclusive THEN pg_catalog.pg_advisory_xact_lock(place.key)
                 ELSE pg_catalog.pg_advisory_xact_lock_shared(place.key) END
       FROM (SELECT millhand.place_lock(n.resource) AS key, pg_catalog.bool_or(n.is_exclusive) AS exclusive
               FROM millhand.needs(lock_places.exclusive, lock_places.shared) AS n
              GROUP BY key ORDER BY key) AS place;
END
$$;

-- The names without those in `others`, each once.
CREATE OR REPLACE FUNCTION millhand.without(names text[], others text[]) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    name text;
    kept text[] := '{}';
BEGIN
    -- (An array that begins elsewhere than at 1 is built anew.)
    IF names = '{}' OR others = '{}' AND pg_catalog.cardinality(names) = 1
                       AND pg_catalog.array_lower(names, 1) = 1 THEN
        RETURN names;
    END IF;
    FOREACH name IN ARRAY names LOOP
        IF name <> ALL (kept) AND name <> ALL (others) THEN
            kept := kept || name;
        END IF;
    END LOOP;
    RETURN kept;
END
$$;
