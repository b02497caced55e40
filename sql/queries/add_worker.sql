-- Name, type, process, host name, pid, ttl in seconds, the owner of its locks if
-- they are not those of the session, and what the same thread had before: its
-- worker id, the fencing token of the last start whose handler it had begun, and, if it
-- still ran that, the task, its name and its attempt.
SELECT millhand.add_worker($1::text, $2::text, $3::text, $4::text, $5::integer,
       make_interval(secs => $6::double precision), $7::text, $8::bigint, $9::bigint,
       $10::bigint, $11::text, $12::integer)
