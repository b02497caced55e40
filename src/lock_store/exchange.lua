-- Lets go of locks, and then takes others, in one step.
--
-- KEYS[1]  the epoch: this incarnation of the store
-- KEYS[2]  the locks, a hash:
--            t<task>      the owner that holds the task
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
-- Everything may be sent twice, because an answer may get lost: what is not in the
-- registry is not let go again, and what one of the owners holds already is a success.
-- Who tried a lock in vain is woken when it is let go.

local argv = ARGV

-- A few calls for all, with as many arguments as Lua can pass.
local MOST = 4000
local function call(name, key, arguments, each)
  for first = 1, #arguments, MOST do
    local last = math.min(first + MOST - 1, #arguments)
    local answer = redis.call(name, key, unpack(arguments, first, last))
    if each then
      each(answer, first - 1)
    end
  end
end

-- Every name that matters here, and what it stands for in the store and later in
-- here: false if there is nothing.
local names, n_names, held = {}, 0, {}
local function note(name)
  if held[name] == nil then
    held[name] = false
    n_names = n_names + 1
    names[n_names] = name
  end
end

-- Notes the names of a list, which has its length before it, and returns its end.
local function note_list(at, width)
  local last = at + argv[at] * width
  for i = at + 1, last, width do
    note(argv[i])
  end
  return last
end

-- Where the names of tasks are among the arguments: what follows is found from there.
local entries, released = {}, {}
local at = 6
for j = 1, tonumber(argv[5]) do
  entries[j], released[j] = argv[at], at + 1
  note(argv[at + 1])
  at = note_list(note_list(at + 3, 1) + 1, 1) + 1
end
local owner_at, n_owners, is_idle = at, tonumber(argv[at]), {}
for i = at + 1, at + n_owners do
  is_idle[argv[i]] = true
end
local wanted, n_wanted = {}, 0
at = at + n_owners + 1
while at < #argv do
  n_wanted = n_wanted + 1
  wanted[n_wanted] = at
  note(argv[at])
  at = note_list(note_list(at + 3, 2) + 1, 2) + 1
end
call('HMGET', KEYS[2], names, function(values, before)
  for i, value in ipairs(values) do
    held[names[before + i]] = value
  end
end)

local changed = {}
local function set(name, value)
  held[name] = value
  changed[name] = true
end

local gone, freed = {}, {}
local function free(name)
  set(name, false)
  freed[#freed + 1] = name
end
call('ZMSCORE', KEYS[3], entries, function(scores, before)
  for j, score in ipairs(scores) do
    if score then
      at = released[before + j]
      gone[#gone + 1] = entries[before + j]
      free(argv[at])
      local id = argv[at + 1]
      local last = at + 2 + argv[at + 2]
      for i = at + 3, last do
        -- Not what was passed on to the next task.
        if held[argv[i]] == id then
          free(argv[i])
        end
      end
      for i = last + 2, last + 1 + argv[last + 1] do
        -- Above zero it was passed on to a task that has it for itself.
        local n = tonumber(held[argv[i]] or 0)
        if n == -1 then
          free(argv[i])
        elseif n < 0 then
          set(argv[i], tostring(n + 1))
        end
      end
    end
  end
end)
call('ZREM', KEYS[3], gone)
local n_tried = 0
if #freed > 0 and redis.call('EXISTS', KEYS[4]) == 1 then
  call('SREM', KEYS[4], freed, function(n)
    n_tried = n_tried + n
  end)
end
local got = {}
if n_owners > 0 and redis.call('GET', KEYS[1]) ~= argv[1] then
  got = false
else
  local n_idle = n_owners
  for j = 1, n_wanted do
    at = wanted[j]
    local owner = held[argv[at]]
    if is_idle[owner] then
      is_idle[owner] = false
      n_idle = n_idle - 1
      got[#got + 1] = argv[at + 1]
      got[#got + 1] = owner
    end
  end
  local new, tried = {}, {}
  for j = 1, n_wanted do
    if n_idle == 0 then
      break
    end
    at = wanted[j]
    local is_free = true
    local function try(name, may_be)
      local now = held[name]
      if now and now ~= may_be then
        is_free = false
        tried[#tried + 1] = name
      end
    end
    try(argv[at])
    local last_x = at + 3 + 2 * argv[at + 3]
    local last_s = last_x + 1 + 2 * argv[last_x + 1]
    for i = at + 4, last_x, 2 do
      try(argv[i], argv[i + 1])
    end
    for i = last_x + 2, last_s, 2 do
      local now = held[argv[i]]
      if now and tonumber(now) > 0 then
        try(argv[i], argv[i + 1])
      end
    end
    if is_free then
      repeat
        owner_at = owner_at + 1
      until is_idle[argv[owner_at]]
      local owner, id = argv[owner_at], argv[at + 1]
      set(argv[at], owner)
      for i = at + 4, last_x, 2 do
        set(argv[i], id)
      end
      for i = last_x + 2, last_s, 2 do
        set(argv[i], tostring(math.min(tonumber(held[argv[i]] or 0), 0) - 1))
      end
      new[#new + 1] = 0
      new[#new + 1] = owner .. argv[at + 2]
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
  if held[name] then
    fields[#fields + 1] = name
    fields[#fields + 1] = held[name]
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
