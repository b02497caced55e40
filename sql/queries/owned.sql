-- What runs, with the owners of its locks: what the lock store should hold.
SELECT w.lock_owner, t.id, t.exclusive, t.shared
  FROM millhand.worker w
  JOIN millhand.task t ON t.owner = w.id AND t.state IN ('running', 'canceling')
 WHERE w.lock_owner IS NOT NULL
