-- Owners of tasks that are no workers.
SELECT owner FROM millhand.unknown_owners() AS owner
