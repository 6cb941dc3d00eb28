-- Put before every script. A call passes KEYS in the order of A.keys, and all else as one JSON
-- object A, so that scripts name what they touch: K.status, A.token.
--
-- A script opens with what it does, then with its K and A, which the store reads: `verbs.py`.
-- In each A are `verb`, the script's name, and `wake`, the channel that subscribers wait at.
--
-- Nonces and proofs are strings here, always: a Lua number would round them.

local A = cjson.decode(ARGV[1])
local K = {}
for i, name in ipairs(A.keys) do K[name] = KEYS[i] end

local function int(x) return string.format('%.0f', x) end
local function seconds(ms) return string.format('%.3f', ms / 1000) end
local function number(x) return tonumber(x or '0') or 0 end

-- Milliseconds by Redis' clock. A step back is made up for by an offset, so that elapsed times
-- never shrink and leases never live again.
local clock_now
local function now_ms()
  if clock_now then return clock_now end
  local t = redis.call('TIME')
  local clock = redis.call('HMGET', K.clock, 'last', 'offset')
  local last, offset = number(clock[1]), number(clock[2])
  clock_now = t[1] * 1000 + math.floor(t[2] / 1000) + offset
  if clock_now < last then
    offset = offset + last - clock_now
    clock_now = last
  end
  redis.call('HSET', K.clock, 'last', int(clock_now), 'offset', int(offset))
  return clock_now
end

-- How far that clock is ahead of the server's, which the ids of streams have.
local function offset_ms() return number(redis.call('HGET', K.clock, 'offset')) end

local function hash(key)
  local flat, map = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do map[flat[i]] = flat[i + 1] end
  return map
end

-- What only viewers need: a key that a stray hand has spoilt costs them their view, and no more.
local function for_viewers(...) return redis.pcall(...) end

local function publish(topic) redis.call('PUBLISH', A.wake, topic) end

-- Ends.

-- Queue the end of a ticket: a clerk moves it into Celery's result backend.
local function ending(fields)
  redis.call('RPUSH', K.endings, cjson.encode(fields))
  publish('endings')
end

-- Where callbacks are counted: by the round they belong to, or, without one, by the namespace.
-- K.counted is the round's hash; one that has expired must not come back.
local function callback_counters(of)
  local targets = {}
  if of == '' then
    targets[1] = K.callbacks
  elseif redis.call('EXISTS', K.counted) == 1 then
    targets[1] = K.counted
    if redis.call('HGET', K.status, 'round_id') == of then targets[2] = K.status end
  end
  return targets
end

-- Show a failure where the callback is counted, and for the whole namespace, whose outbox it is.
local function show_failure(of, error)
  for _, key in ipairs(callback_counters(of)) do redis.call('HSET', key, 'callback_error', error) end
  redis.call('HSET', K.callbacks, 'last_error', error)
end

local function count_callback(of, field, by)
  for _, key in ipairs(callback_counters(of)) do
    redis.call('HINCRBY', key, 'callbacks_' .. field, by)
  end
end

-- What the error of a callback that is tried again begins with: it passes with the next delivery.
local TRIED_AGAIN = 'tried again: '

-- Queue one frozen callback message.
local function post(message)
  redis.call('XADD', K.outbox, '*',
    'url', message.url, 'body', message.body, 'key', message.key, 'round', message.round,
    'expires_at', int(now_ms() + message.deadline_s * 1000), 'traceparent', message.traceparent)
  publish('outbox')
end
