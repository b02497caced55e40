-- One turn of several workers: see functions/15_joint_turn.sql.
SELECT task_id, what, task_name, millhand.args_text(task_args) AS task_args, task_fence, task_attempt,
       task_exclusive, task_shared
  FROM millhand.joint_turn($1::bigint[], $2::bigint[], $3::text[], $4::jsonb[], $5::text[],
       $6::text[], $7::bigint[], $8::jsonb[], $9::bigint[], $10::bigint[])
