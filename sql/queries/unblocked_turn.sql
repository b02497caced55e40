-- One turn of a worker of type pulpcore: see functions/16_unblocked_turn.sql.
SELECT owned, task_id, task_name, millhand.args_text(task_args) AS task_args, task_fence, task_attempt,
       task_exclusive, task_shared,
       more, inconclusive, unfinished, bell_hung
  FROM millhand.unblocked_turn($1::bigint, $2::text, $3::text[], $4::bigint, $5::bigint[],
       $6::bigint, $7::text, $8::jsonb, $9::text, $10::text,
       $11::bigint, $12::jsonb, $13::boolean, $14::boolean, $15::boolean, $16::boolean,
       $17::boolean)
