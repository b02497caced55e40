-- Lets go of locks, and wakes who tried one of them in vain.
--
-- KEYS     as for acquire.lua: the epoch, the locks, the registry, the vain tries
-- ARGV[1]  the channel for wake-ups
-- ARGV[2]  1 to wake in any case, else 0
-- and for each task three more:
--   the owner, the task, its needs, as they were given to acquire.lua
--
-- Result: how many tasks' locks were held. What is not in the registry is not
-- touched, so a second call for the same does nothing.

local wake = ARGV[2] == '1'
local n_held = 0
local anyone_waits = redis.call('EXISTS', KEYS[4]) == 1
for i = 3, #ARGV, 3 do
  local owner, task = ARGV[i], ARGV[i + 1]
  if redis.call('ZREM', KEYS[3], owner .. ' ' .. task .. ' ' .. ARGV[i + 2]) == 1 then
    n_held = n_held + 1
    local needs = cjson.decode(ARGV[i + 2])
    local free = {'t' .. task}
    if #needs.exclusive > 0 then
      local names = {}
      for j, resource in ipairs(needs.exclusive) do
        names[j] = 'x' .. resource
      end
      local holders = redis.call('HMGET', KEYS[2], unpack(names))
      for j, name in ipairs(names) do
        -- Not what was passed on to the next task.
        if holders[j] == task then
          free[#free + 1] = name
        end
      end
    end
    for _, resource in ipairs(needs.shared) do
      local name = 's' .. resource
      if redis.call('HINCRBY', KEYS[2], name, -1) < 1 then
        free[#free + 1] = name
      end
    end
    redis.call('HDEL', KEYS[2], unpack(free))
    if anyone_waits and redis.call('SREM', KEYS[4], unpack(free)) > 0 then
      wake = true
    end
  end
end
if wake then
  redis.call('PUBLISH', ARGV[1], '')
end
return n_held
