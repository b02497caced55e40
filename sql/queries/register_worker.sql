-- Name, type, process, host name, pid, ttl in seconds, and what the same thread
-- had before: its worker id and the task whose handler it had begun.
SELECT millhand.register_worker($1::text, $2::text, $3::text, $4::text, $5::integer,
       make_interval(secs => $6::double precision), $7::bigint, $8::bigint)
