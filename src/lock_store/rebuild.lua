-- Begins a new epoch: forgets all locks and takes those of the tasks that run,
-- as the table says. Does nothing if somebody else was faster.
--
-- KEYS     as for exchange.lua: the epoch, the locks, the registry, the vain tries
-- ARGV[1]  the epoch that the caller found, or nothing
-- ARGV[2]  the new epoch
-- ARGV[3]  the channel for wake-ups
-- and for each task three more:
--   the owner, the task, its needs, as for exchange.lua
--
-- Result: the epoch in force now.

local found = redis.call('GET', KEYS[1]) or ''
if found ~= ARGV[1] then
  return found
end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
for i = 4, #ARGV, 3 do
  local owner, task = ARGV[i], ARGV[i + 1]
  local needs = cjson.decode(ARGV[i + 2])
  redis.call('HSET', KEYS[2], 't' .. task, owner)
  for _, resource in ipairs(needs.exclusive) do
    redis.call('HSET', KEYS[2], 'x' .. resource, task)
  end
  for _, resource in ipairs(needs.shared) do
    redis.call('HINCRBY', KEYS[2], 's' .. resource, 1)
  end
  redis.call('ZADD', KEYS[3], 0, owner .. ' ' .. task .. ' ' .. ARGV[i + 2])
end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], '')
return ARGV[2]
