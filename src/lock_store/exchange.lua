-- Lets go of locks, and then takes others, in one step.
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
-- ARGV[2]  the channel for wake-ups
-- ARGV[3]  the process that wakes all others in any case, or nothing
-- ARGV[4]  of how many tasks the locks are to be let go; for each three more:
--            the owner, the task,
--            its needs, as JSON: {"exclusive":[...],"shared":[...]}
-- then     how many owners there are to hold a task each, these owners,
--          and for each task to try, in order, three more:
--            the task, its needs,
--            what the caller passes on, as JSON: its own locks on tasks that it ends
--            in the transaction that starts these, with the values under which they
--            do not count; or nothing
--
-- Result: a list of the tasks whose locks it got, all of a task or none, each
-- followed by its owner; false, and none is taken, if the epoch is another one.
--
-- Everything may be sent twice, because an answer may get lost: what is not in the
-- registry is not let go again, and what one of the owners holds already is a success.
-- Who tried a lock in vain is woken when it is let go.

-- A few calls for all tasks, with as many arguments as Lua can pass.
local MOST = 4000
local function call(name, key, arguments, each)
  for i = 1, #arguments, MOST do
    local last = math.min(i + MOST - 1, #arguments)
    local answer = redis.call(name, key, unpack(arguments, i, last))
    if each then
      each(answer, i)
    end
  end
end

local n_released = tonumber(ARGV[4])
local first_owner = 6 + 3 * n_released
local n_owners = tonumber(ARGV[first_owner - 1])

local members, registered = {}, {}
for i = 5, first_owner - 2, 3 do
  members[#members + 1] = ARGV[i] .. ' ' .. ARGV[i + 1] .. ' ' .. ARGV[i + 2]
end
call('ZMSCORE', KEYS[3], members, function(scores, i)
  for j, score in ipairs(scores) do
    registered[i + j - 1] = score
  end
end)
local gone, free, names, tasks_of = {}, {}, {}, {}
for j, member in ipairs(members) do
  if registered[j] then
    local task = ARGV[3 * j + 3]
    local needs = cjson.decode(ARGV[3 * j + 4])
    gone[#gone + 1] = member
    free[#free + 1] = 't' .. task
    for _, resource in ipairs(needs.exclusive) do
      names[#names + 1] = 'x' .. resource
      tasks_of[#names] = task
    end
    for _, resource in ipairs(needs.shared) do
      if redis.call('HINCRBY', KEYS[2], 's' .. resource, -1) < 1 then
        free[#free + 1] = 's' .. resource
      end
    end
  end
end
call('HMGET', KEYS[2], names, function(holders, i)
  for j, holder in ipairs(holders) do
    -- Not what was passed on to the next task.
    if holder == tasks_of[i + j - 1] then
      free[#free + 1] = names[i + j - 1]
    end
  end
end)
call('ZREM', KEYS[3], gone)
call('HDEL', KEYS[2], free)
local n_tried = 0
if #free > 0 and redis.call('EXISTS', KEYS[4]) == 1 then
  call('SREM', KEYS[4], free, function(n)
    n_tried = n_tried + n
  end)
end
if n_tried > 0 then
  redis.call('PUBLISH', ARGV[2], '')
elseif ARGV[3] ~= '' and redis.call('PUBSUB', 'NUMSUB', ARGV[2])[2] > 1 then
  redis.call('PUBLISH', ARGV[2], ARGV[3])
end

if n_owners == 0 then
  return {}
end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return false
end

local tasks = {}
names = {}
for i = first_owner + n_owners, #ARGV, 3 do
  local task = {id = ARGV[i], needs = ARGV[i + 1], first = #names + 1}
  local needs = cjson.decode(task.needs)
  task.exclusive, task.shared = needs.exclusive, needs.shared
  task.passed_on = ARGV[i + 2] ~= '' and cjson.decode(ARGV[i + 2]) or {}
  names[#names + 1] = 't' .. task.id
  for _, resource in ipairs(task.exclusive) do
    names[#names + 1] = 'x' .. resource
    names[#names + 1] = 's' .. resource
  end
  for _, resource in ipairs(task.shared) do
    names[#names + 1] = 'x' .. resource
  end
  task.last = #names
  tasks[#tasks + 1] = task
end

local held = {}
call('HMGET', KEYS[2], names, function(values, i)
  for j, value in ipairs(values) do
    held[names[i + j - 1]] = value
  end
end)
local is_idle = {}
for i = first_owner, first_owner + n_owners - 1 do
  is_idle[ARGV[i]] = true
end
local got = {}
for _, task in ipairs(tasks) do
  local owner = held['t' .. task.id]
  if is_idle[owner] then
    is_idle[owner] = false
    got[#got + 1] = task.id
    got[#got + 1] = owner
    task.is_held = true
  end
end
local fields, entries, tried = {}, {}, {}
local next_owner = first_owner
for _, task in ipairs(tasks) do
  while next_owner < first_owner + n_owners and not is_idle[ARGV[next_owner]] do
    next_owner = next_owner + 1
  end
  if next_owner == first_owner + n_owners then
    break
  end
  local is_free = not task.is_held
  if is_free then
    for i = task.first, task.last do
      local name = names[i]
      if held[name] and held[name] ~= task.passed_on[name] then
        is_free = false
        tried[#tried + 1] = name
      end
    end
  end
  if is_free then
    local owner = ARGV[next_owner]
    is_idle[owner] = false
    fields[#fields + 1] = 't' .. task.id
    fields[#fields + 1] = owner
    for _, resource in ipairs(task.exclusive) do
      held['x' .. resource] = task.id
      fields[#fields + 1] = 'x' .. resource
      fields[#fields + 1] = task.id
    end
    for _, resource in ipairs(task.shared) do
      held['s' .. resource] = tostring(redis.call('HINCRBY', KEYS[2], 's' .. resource, 1))
    end
    entries[#entries + 1] = 0
    entries[#entries + 1] = owner .. ' ' .. task.id .. ' ' .. task.needs
    got[#got + 1] = task.id
    got[#got + 1] = owner
  end
end
call('HSET', KEYS[2], fields)
call('ZADD', KEYS[3], entries)
call('SADD', KEYS[4], tried)
return got
