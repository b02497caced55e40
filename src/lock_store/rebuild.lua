-- Begins a new epoch: forgets all locks and takes those of the tasks that run,
-- as the table says. Does nothing if somebody else was faster.
--
-- KEYS     as for exchange.lua: the epoch, the locks, the registry, the vain tries
-- ARGV[1]  the epoch that the caller found, or nothing
-- ARGV[2]  the new epoch
-- ARGV[3]  the channel for wake-ups
-- and for each task, as for exchange.lua:
--   its entry in the registry, its t name, the task,
--   how many resources it has for itself, and their r names,
--   how many it shares, and their r names
--
-- Result: the epoch in force now.

local found = redis.call('GET', KEYS[1]) or ''
if found ~= ARGV[1] then
  return found
end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
local position = 3
local function take()
  position = position + 1
  return ARGV[position]
end
while position < #ARGV do
  local entry, name, task = take(), take(), take()
  redis.call('HSET', KEYS[2], name, entry)
  for _ = 1, tonumber(take()) do
    redis.call('HSET', KEYS[2], take(), task)
  end
  for _ = 1, tonumber(take()) do
    redis.call('HINCRBY', KEYS[2], take(), -1)
  end
  redis.call('ZADD', KEYS[3], 0, entry)
end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], '')
return ARGV[2]
