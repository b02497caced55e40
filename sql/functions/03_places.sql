-- Takes the dispatch locks of these resources until the transaction ends, in
-- the order of their keys, so that two calls cannot deadlock. (Several calls
-- in one transaction can; Postgres then ends one of the two.)
CREATE OR REPLACE FUNCTION millhand.lock_places(exclusive text[], shared text[]) RETURNS void
LANGUAGE sql VOLATILE AS $$
    SELECT CASE WHEN place.exclusive THEN pg_advisory_xact_lock(place.key)
                ELSE pg_advisory_xact_lock_shared(place.key) END
      FROM (SELECT key, bool_or(needed.exclusive) AS exclusive
              FROM (SELECT millhand.place_lock(name) AS key, true AS exclusive
                      FROM unnest($1) AS name
                     UNION ALL
                    SELECT millhand.place_lock(name), false FROM unnest($2) AS name) needed
             GROUP BY key ORDER BY key) place
$$;
