-- Lets go of this session's bell, if it holds it at all.
SELECT pg_advisory_unlock_shared(millhand.bell_lock())
 WHERE EXISTS (SELECT FROM pg_locks
                WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND objsubid = 1
                  AND (classid::bigint << 32 | objid::bigint) = millhand.bell_lock())
