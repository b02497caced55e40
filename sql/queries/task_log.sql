-- What a task ($1) has written to stderr: the end of it, and how long it is in all.
SELECT coalesce(log, '') AS log, coalesce(log_size, octet_length(log), 0) AS log_size, state
  FROM millhand.task WHERE id = $1::bigint
