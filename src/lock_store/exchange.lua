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
-- ARGV     in this order:
--   the epoch that the caller knows,
--   the channel for wake-ups,
--   the process that wakes all others in any case, or nothing,
--   of how many tasks the locks are to be let go; for each
--     its entry in the registry, the task,
--     how many resources it has for itself, and their x names,
--     how many it shares, and their s names,
--   how many owners there are to hold a task each, and these owners,
--   and for each task to try, in order,
--     the task, its needs, for the registry,
--     how many resources it wants for itself, and how many it wants to share,
--     for each of the first an x name, an s name, and the value of each under which
--       it does not count: the caller's own lock on a task that it ends in the
--       transaction that starts this one; or nothing,
--     for each of the others an x name, that value, and an s name
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

local position = 0
local function take()
  position = position + 1
  return ARGV[position]
end

local epoch, channel, told_by = take(), take(), take()

local entries, released = {}, {}
for j = 1, tonumber(take()) do
  entries[j] = take()
  local task = {id = take()}
  local n = tonumber(take())
  task.first_x, task.last_x = position + 1, position + n
  position = position + n
  n = tonumber(take())
  task.first_s, task.last_s = position + 1, position + n
  position = position + n
  released[j] = task
end
local is_registered = {}
call('ZMSCORE', KEYS[3], entries, function(scores, i)
  for j, score in ipairs(scores) do
    is_registered[i + j - 1] = score
  end
end)
local gone, free, names, tasks_of = {}, {}, {}, {}
for j, task in ipairs(released) do
  if is_registered[j] then
    gone[#gone + 1] = entries[j]
    free[#free + 1] = 't' .. task.id
    for i = task.first_x, task.last_x do
      names[#names + 1] = ARGV[i]
      tasks_of[#names] = task.id
    end
    for i = task.first_s, task.last_s do
      if redis.call('HINCRBY', KEYS[2], ARGV[i], -1) < 1 then
        free[#free + 1] = ARGV[i]
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
  redis.call('PUBLISH', channel, '')
elseif told_by ~= '' and redis.call('PUBSUB', 'NUMSUB', channel)[2] > 1 then
  redis.call('PUBLISH', channel, told_by)
end

local n_owners = tonumber(take())
if n_owners == 0 then
  return {}
end
if redis.call('GET', KEYS[1]) ~= epoch then
  return false
end
local owners, is_idle = {}, {}
for i = 1, n_owners do
  owners[i] = take()
  is_idle[owners[i]] = true
end

local tasks = {}
names = {}
while position < #ARGV do
  local task = {id = take(), needs = take(), first = position + 3}
  task.n_exclusive, task.n_shared = tonumber(take()), tonumber(take())
  names[#names + 1] = 't' .. task.id
  for _ = 1, task.n_exclusive do
    names[#names + 1] = ARGV[position + 1]
    names[#names + 1] = ARGV[position + 2]
    position = position + 4
  end
  for _ = 1, task.n_shared do
    names[#names + 1] = ARGV[position + 1]
    position = position + 3
  end
  tasks[#tasks + 1] = task
end
local held = {}
call('HMGET', KEYS[2], names, function(values, i)
  for j, value in ipairs(values) do
    held[names[i + j - 1]] = value
  end
end)

local got = {}
for _, task in ipairs(tasks) do
  local owner = held['t' .. task.id]
  if is_idle[owner] then
    is_idle[owner] = false
    got[#got + 1] = task.id
    got[#got + 1] = owner
  end
end
local fields, tried = {}, {}
entries = {}
local next_owner = 1
for _, task in ipairs(tasks) do
  while next_owner <= n_owners and not is_idle[owners[next_owner]] do
    next_owner = next_owner + 1
  end
  if next_owner > n_owners then
    break
  end
  local is_free = not held['t' .. task.id]
  local function try(name, passed_on)
    if held[name] and held[name] ~= passed_on then
      is_free = false
      tried[#tried + 1] = name
    end
  end
  local first_shared = task.first + 4 * task.n_exclusive
  for i = task.first, first_shared - 1, 4 do
    try(ARGV[i], ARGV[i + 2])
    try(ARGV[i + 1], ARGV[i + 3])
  end
  local last_shared = first_shared + 3 * task.n_shared - 1
  for i = first_shared, last_shared, 3 do
    try(ARGV[i], ARGV[i + 1])
  end
  if is_free then
    local owner = owners[next_owner]
    is_idle[owner] = false
    fields[#fields + 1] = 't' .. task.id
    fields[#fields + 1] = owner
    for i = task.first, first_shared - 1, 4 do
      held[ARGV[i]] = task.id
      fields[#fields + 1] = ARGV[i]
      fields[#fields + 1] = task.id
    end
    for i = first_shared, last_shared, 3 do
      local name = ARGV[i + 2]
      held[name] = tostring(redis.call('HINCRBY', KEYS[2], name, 1))
    end
    entries[#entries + 1] = 0
    entries[#entries + 1] = owner .. ' ' .. task.id .. ' ' .. task.needs
    got[#got + 1] = task.id
    got[#got + 1] = owner
  elseif held['t' .. task.id] then
    tried[#tried + 1] = 't' .. task.id
  end
end
call('HSET', KEYS[2], fields)
call('ZADD', KEYS[3], entries)
call('SADD', KEYS[4], tried)
return got
