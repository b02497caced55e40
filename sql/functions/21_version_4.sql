-- Turns as workers of version 4 call them, which are online while a database is migrated.
CREATE OR REPLACE FUNCTION millhand.next_task(
    worker_id bigint, worker_name text, handlers text[], low bigint, stragglers bigint[],
    ended_task bigint, outcome text, task_result jsonb, task_error text, task_log text,
    wanted boolean, idle_siblings boolean, take_bell_down boolean, hang_bell boolean,
    OUT owned boolean,
    OUT task_id bigint, OUT task_name text, OUT task_args jsonb, OUT task_fence bigint,
    OUT task_attempt integer,
    OUT more boolean, OUT inconclusive boolean, OUT unfinished boolean, OUT bell_hung boolean
)
LANGUAGE sql AS $$
    SELECT owned, task_id, task_name, task_args, task_fence, task_attempt, more, inconclusive, unfinished,
           bell_hung
      FROM millhand.next_task($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, NULL, NULL,
                              $11, $12, $13, $14)
$$;

CREATE OR REPLACE FUNCTION millhand.unblocked_turn(
    worker_id bigint, worker_name text, handlers text[], low bigint, stragglers bigint[],
    ended_task bigint, outcome text, task_result jsonb, task_error text, task_log text,
    wanted boolean, idle_siblings boolean, take_bell_down boolean, hang_bell boolean,
    unblocks boolean,
    OUT owned boolean,
    OUT task_id bigint, OUT task_name text, OUT task_args jsonb, OUT task_fence bigint,
    OUT task_attempt integer,
    OUT more boolean, OUT inconclusive boolean, OUT unfinished boolean, OUT bell_hung boolean
)
LANGUAGE sql AS $$
    SELECT owned, task_id, task_name, task_args, task_fence, task_attempt, more, inconclusive, unfinished,
           bell_hung
      FROM millhand.unblocked_turn($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, NULL, NULL,
                                   $11, $12, $13, $14, $15)
$$;

CREATE OR REPLACE FUNCTION millhand.joint_turn(
    ended bigint[], ended_by bigint[], outcomes text[], results jsonb[], errors text[], logs text[],
    started bigint[], started_by bigint[]
) RETURNS TABLE (
    task_id bigint, what text, task_name text, task_args jsonb, task_fence bigint, task_attempt integer
)
LANGUAGE sql AS $$
    SELECT task_id, what, task_name, task_args, task_fence, task_attempt
      FROM millhand.joint_turn($1, $2, $3, $4, $5, $6,
                               array_fill(NULL::bigint, ARRAY[cardinality($1)]),
                               array_fill(NULL::jsonb, ARRAY[cardinality($1)]), $7, $8)
$$;
