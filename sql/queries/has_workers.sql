-- Whether a process ($1) has workers.
SELECT EXISTS (SELECT FROM millhand.worker w WHERE w.process = $1::text)
