-- Takes the locks of tasks, in the order given: all that a task needs, or none.
--
-- KEYS[1]  the epoch: this incarnation of the store
-- KEYS[2]  the locks, a hash:
--            t<task>      the owner that holds the task
--            x<resource>  the task that has it for itself
--            s<resource>  how many tasks share it
-- KEYS[3]  the registry, a sorted set of "<owner> <task> <needs>", in the order of
--          the text, so that what one owner holds stands together
-- KEYS[4]  the locks that somebody tried in vain, a set of names as in KEYS[2]
--
-- ARGV[1]  the epoch that the caller knows
-- ARGV[2]  how many owners there are to hold a task each, and then these
-- and for each task three more:
--   the task,
--   its needs, as JSON: {"exclusive":[...],"shared":[...]}
--   what the caller passes on, as JSON: its own locks on tasks that it ends in the
--   transaction that starts these, with the values under which they do not count;
--   or nothing
--
-- Result: false if the epoch is another one; else a list of the tasks whose locks
-- it got, the first for the first owner. Asking again for what an owner holds is a
-- success: an answer may have been lost.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return false
end

local n_owners = tonumber(ARGV[2])
local got = {}
for i = 3 + n_owners, #ARGV, 3 do
  if #got == n_owners then
    break
  end
  local owner, task = ARGV[3 + #got], ARGV[i]
  local needs = cjson.decode(ARGV[i + 1])
  local passed_on = ARGV[i + 2] ~= '' and cjson.decode(ARGV[i + 2]) or {}

  local names = {'t' .. task}
  for _, resource in ipairs(needs.exclusive) do
    names[#names + 1] = 'x' .. resource
    names[#names + 1] = 's' .. resource
  end
  for _, resource in ipairs(needs.shared) do
    names[#names + 1] = 'x' .. resource
  end

  local held = redis.call('HMGET', KEYS[2], unpack(names))
  if held[1] == owner then
    got[#got + 1] = task
  else
    local free = true
    for j, name in ipairs(names) do
      if held[j] and held[j] ~= passed_on[name] then
        free = false
        redis.call('SADD', KEYS[4], name)
      end
    end
    if free then
      local fields = {'t' .. task, owner}
      for _, resource in ipairs(needs.exclusive) do
        fields[#fields + 1] = 'x' .. resource
        fields[#fields + 1] = task
      end
      redis.call('HSET', KEYS[2], unpack(fields))
      for _, resource in ipairs(needs.shared) do
        redis.call('HINCRBY', KEYS[2], 's' .. resource, 1)
      end
      redis.call('ZADD', KEYS[3], 0, owner .. ' ' .. task .. ' ' .. ARGV[i + 1])
      got[#got + 1] = task
    end
  end
end
return got
