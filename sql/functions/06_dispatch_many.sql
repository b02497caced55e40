-- Creates many waiting tasks at once, in the order given, and returns their
-- ids in that order. `tasks` is a JSON array of objects with the keys name,
-- args, exclusive and shared; all but name may be missing.
CREATE OR REPLACE FUNCTION millhand.dispatch_many(tasks jsonb) RETURNS SETOF bigint
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
#variable_conflict use_column
DECLARE
    all_exclusive text[];
    all_shared text[];
    wrong text;
BEGIN
    IF jsonb_typeof(tasks) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION 'expected a JSON array of tasks' USING ERRCODE = 'check_violation';
    END IF;
    IF EXISTS (SELECT FROM jsonb_array_elements(tasks) AS task WHERE jsonb_typeof(task) <> 'object') THEN
        RAISE EXCEPTION 'expected a JSON object for each task' USING ERRCODE = 'check_violation';
    END IF;
    SELECT key INTO wrong
      FROM jsonb_array_elements(tasks) AS task, jsonb_object_keys(task) AS key
     WHERE key NOT IN ('name', 'args', 'exclusive', 'shared')
           OR key IN ('exclusive', 'shared')
              AND jsonb_typeof(task -> key) NOT IN ('array', 'null') LIMIT 1;
    IF wrong IN ('exclusive', 'shared') THEN
        RAISE EXCEPTION '`%` of a task is not a list of resources, such as ["disk"]', wrong
            USING ERRCODE = 'check_violation';
    ELSIF FOUND THEN
        RAISE EXCEPTION 'unknown key `%` in a task; known are name, args, exclusive and shared', wrong
            USING ERRCODE = 'check_violation';
    END IF;
    PERFORM millhand.check_task(t.name, coalesce(t.args, '{}'), coalesce(t.exclusive, '{}'), coalesce(t.shared, '{}'))
       FROM jsonb_to_recordset(tasks) AS t(name text, args jsonb, exclusive text[], shared text[])
      WHERE millhand.is_plain(t.name, coalesce(t.args, '{}'), t.exclusive, t.shared,
                              coalesce(millhand.all_names(t.exclusive, t.shared), '{}')) IS NOT TRUE;
    PERFORM pg_current_xact_id();
    PERFORM pg_advisory_xact_lock_shared(millhand.dispatching_lock());
    SELECT array_agg(n.resource) FILTER (WHERE n.is_exclusive),
           array_agg(n.resource) FILTER (WHERE NOT n.is_exclusive)
      INTO all_exclusive, all_shared
      FROM jsonb_to_recordset(tasks) AS t(exclusive text[], shared text[])
     CROSS JOIN LATERAL millhand.needs(t.exclusive, t.shared) AS n;
    PERFORM millhand.lock_places(coalesce(all_exclusive, '{}'), coalesce(all_shared, '{}'));
    -- The sort stands in a subquery, so that ids and positions are drawn in
    -- the order of the array.
    RETURN QUERY
        INSERT INTO millhand.task (name, args, exclusive, shared, position)
        SELECT t.name, t.args, t.exclusive, t.shared, nextval('millhand.task_position')
          FROM (SELECT g.name, g.args,
                       CASE WHEN p.is_plain THEN g.exclusive
                            ELSE millhand.without(g.exclusive, '{}') END AS exclusive,
                       CASE WHEN p.is_plain THEN g.shared
                            ELSE millhand.without(g.shared, g.exclusive) END AS shared
                  FROM (SELECT name, coalesce(args, '{}') AS args,
                               coalesce(exclusive, '{}') AS exclusive,
                               coalesce(shared, '{}') AS shared, number
                          FROM ROWS FROM (jsonb_to_recordset(tasks)
                                          AS (name text, args jsonb, exclusive text[], shared text[]))
                               WITH ORDINALITY AS given(name, args, exclusive, shared, number)) AS g
                 CROSS JOIN LATERAL
                       (SELECT millhand.is_plain(g.name, g.args, g.exclusive, g.shared,
                                                 millhand.all_names(g.exclusive, g.shared)) AS is_plain) AS p
                 ORDER BY g.number) AS t
        RETURNING id;
    PERFORM millhand.ring();
END
$$;
