-- The workers of a process ($1), which is dead.
SELECT id FROM millhand.worker WHERE process = $1::text ORDER BY id
