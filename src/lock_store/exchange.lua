-- Lets go of locks, and then takes others, in one step.
--
-- KEYS[1]  the epoch: this incarnation of the store
-- KEYS[2]  the locks, a hash:
--            t<task>      the entry in the registry of who holds the task
--            r<resource>  the task that has it for itself, or, below zero, how many
--                         tasks share it
-- KEYS[3]  the registry, a sorted set of "<owner> <task> <needs>", in the order of
--          the text, so that what one owner holds stands together
-- KEYS[4]  the locks that somebody tried in vain, a set of names as in KEYS[2]
--
-- ARGV     in this order:
--   the epoch that the caller knows,
--   the channel for wake-ups,
--   the process that wakes all others in any case, or nothing,
--   how many of those who hear are that process,
--   how many names as in KEYS[2] follow below, and all these names,
--   of how many tasks the locks are to be let go; for each
--     its entry in the registry, its t name, the task,
--     how many resources it has for itself, and their r names,
--     how many it shares, and their r names,
--   how many owners there are to hold a task each, and these owners,
--   and for each task to try, in order,
--     its t name, the task, its entry in the registry without the owner,
--     how many resources it wants for itself, and for each its r name and the value
--       under which it does not count: the caller's own lock on a task that it ends
--       in the transaction that starts this one; or nothing,
--     how many it wants to share, and the same for each of these
--
-- Result: a list of the tasks whose locks it got, all of a task or none, each
-- followed by its owner; false, and none is taken, if the epoch is another one.
--
-- Everything may be sent twice, because an answer may get lost: what is not held is
-- not let go again, and what one of the owners holds already is a success.
-- Who tried a lock in vain is woken when it is let go.
--
-- This is on the way of every task, and Redis does nothing else meanwhile. So the
-- values come in one call, tasks are read where they stand among the arguments, and
-- an entry stands for a task although its owner would do: it is longer than 64 bytes,
-- at which a hash of few fields stops searching all of them for each.

local argv = ARGV

-- One call with as many arguments as Lua can pass at once; what the answers sum up to.
local MOST = 4000
local function call(name, key, arguments)
  local sum = 0
  for first = 1, #arguments, MOST do
    local last = math.min(first + MOST - 1, #arguments)
    sum = sum + redis.call(name, key, unpack(arguments, first, last))
  end
  return sum
end

-- What each name stands for in the store, and later in here: false if for nothing.
local held, changed = {}, {}
local at = 5 + argv[5]
for first = 6, at, MOST do
  local last = math.min(first + MOST - 1, at)
  local values = redis.call('HMGET', KEYS[2], unpack(argv, first, last))
  for i = 1, #values do
    held[argv[first + i - 1]] = values[i]
  end
end
local function set(name, value)
  held[name] = value
  changed[name] = true
end

local gone, freed = {}, {}
local function free(name)
  set(name, false)
  freed[#freed + 1] = name
end
at = at + 1
for _ = 1, argv[at] do
  local entry, name, id = argv[at + 1], argv[at + 2], argv[at + 3]
  local last_exclusive = at + 4 + argv[at + 4]
  local last_shared = last_exclusive + 1 + argv[last_exclusive + 1]
  gone[#gone + 1] = entry
  if held[name] == entry then
    free(name)
    for i = at + 5, last_exclusive do
      -- Not what was passed on to the next task.
      if held[argv[i]] == id then
        free(argv[i])
      end
    end
    for i = last_exclusive + 2, last_shared do
      -- Above zero it was passed on to a task that has it for itself.
      local n = tonumber(held[argv[i]] or 0)
      if n == -1 then
        free(argv[i])
      elseif n < 0 then
        set(argv[i], tostring(n + 1))
      end
    end
  end
  at = last_shared
end
call('ZREM', KEYS[3], gone)
local n_tried = 0
if #freed > 0 and redis.call('EXISTS', KEYS[4]) == 1 then
  n_tried = call('SREM', KEYS[4], freed)
end

local got = {}
local owner_at, n_idle = at + 1, tonumber(argv[at + 1])
if n_idle > 0 and redis.call('GET', KEYS[1]) ~= argv[1] then
  got = false
else
  local first_wanted, is_idle = owner_at + n_idle + 1, {}
  for i = owner_at + 1, first_wanted - 1 do
    is_idle[argv[i]] = true
  end
  local wanted = {}
  at = first_wanted
  while at < #argv do
    wanted[#wanted + 1] = at
    local holder = held[argv[at]]
    local owner = holder and string.match(holder, '^[^ ]*')
    if is_idle[owner] then
      is_idle[owner] = false
      n_idle = n_idle - 1
      got[#got + 1] = argv[at + 1]
      got[#got + 1] = owner
    end
    local last_exclusive = at + 3 + 2 * argv[at + 3]
    at = last_exclusive + 2 + 2 * argv[last_exclusive + 1]
  end
  local new, tried = {}, {}
  for j = 1, #wanted do
    if n_idle == 0 then
      break
    end
    at = wanted[j]
    local name, id = argv[at], argv[at + 1]
    local last_exclusive = at + 3 + 2 * argv[at + 3]
    local last_shared = last_exclusive + 1 + 2 * argv[last_exclusive + 1]
    local n_before = #tried
    if held[name] then
      tried[#tried + 1] = name
    end
    for i = at + 4, last_exclusive, 2 do
      local now = held[argv[i]]
      if now and now ~= argv[i + 1] then
        tried[#tried + 1] = argv[i]
      end
    end
    for i = last_exclusive + 2, last_shared, 2 do
      local now = held[argv[i]]
      if now and now ~= argv[i + 1] and tonumber(now) > 0 then
        tried[#tried + 1] = argv[i]
      end
    end
    if #tried == n_before then
      repeat
        owner_at = owner_at + 1
      until is_idle[argv[owner_at]]
      local owner = argv[owner_at]
      local entry = owner .. argv[at + 2]
      set(name, entry)
      for i = at + 4, last_exclusive, 2 do
        set(argv[i], id)
      end
      for i = last_exclusive + 2, last_shared, 2 do
        set(argv[i], tostring(math.min(tonumber(held[argv[i]] or 0), 0) - 1))
      end
      new[#new + 1] = 0
      new[#new + 1] = entry
      is_idle[owner] = false
      n_idle = n_idle - 1
      got[#got + 1] = id
      got[#got + 1] = owner
    end
  end
  call('ZADD', KEYS[3], new)
  call('SADD', KEYS[4], tried)
end

local fields, removed = {}, {}
for name in pairs(changed) do
  local value = held[name]
  if value then
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  else
    removed[#removed + 1] = name
  end
end
call('HSET', KEYS[2], fields)
call('HDEL', KEYS[2], removed)

-- Last of all: a user may lack the right, and then no lock is left half let go.
local channel, told_by = argv[2], argv[3]
if n_tried > 0 then
  redis.call('PUBLISH', channel, '')
elseif told_by ~= '' and redis.call('PUBSUB', 'NUMSUB', channel)[2] > tonumber(argv[4]) then
  redis.call('PUBLISH', channel, told_by)
end
return got
