-- Whether there are workers that hear through the lock store.
SELECT EXISTS (SELECT FROM millhand.worker WHERE lock_owner IS NOT NULL)
