-- Those of these owners of locks ($1) that are workers.
SELECT lock_owner FROM millhand.worker WHERE lock_owner = ANY ($1::text[])
