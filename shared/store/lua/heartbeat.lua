-- A worker lives: show it, keep its model, renew the leases of what it computes, and bring the
-- round's clocks up to date. A worker with another model than the namespace's is refused.
-- A name belongs to one process: another one is refused while its holder lives.
-- The distances of the first worker's functional check become the reference of its model.
-- A.schemes are those that it computes; a zset has how long somebody who does lives for certain.
-- A.counted are nonces of a round by the bins of their distances, name and count in turn.
-- A generation whose time is over ends; callbacks that wait to be joined go out in time.
-- with _round
-- K writes: status, clock, endings, outbox, gathered(round), round(round), run(round),
--   claims(round), leases(round), tickets(round), model, reference(fingerprint), worker(worker),
--   workers, takers, chunk_claims, chunk_leases, callbacks, history(round), histogram(round),
--   incidents, totals, schemes
-- A: round, worker, instance?, takes_over?, fingerprint, pinned?, model, fields, tokens, schemes,
--   distances?, reference_s, live_ms, keep_incidents, keep_incidents_s, lease_ms, deadline_ms,
--   epoch, counted?

local other = moved()
if other then return other end
local now = now_ms()
local shown = hash(K.worker)
if A.instance and shown.instance and shown.instance ~= A.instance and not A.takes_over then
  return cjson.encode({error = 'NameTaken', message = shown.heartbeat_at})
end
local held = redis.call('HGET', K.model, 'fingerprint')
local wanted = A.pinned or held
if wanted and wanted ~= A.fingerprint then
  return cjson.encode({error = 'ModelMismatch', message = wanted})
end
redis.call('HSET', K.model, unpack(A.model))
redis.call('PEXPIRE', K.model, A.live_ms)
if A.distances then
  if redis.call('EXISTS', K.reference) == 0 then
    redis.call('HSET', K.reference, 'distances', A.distances, 'worker', A.worker, 'at', seconds(now))
  end
  redis.call('EXPIRE', K.reference, A.reference_s)
end
if A.instance then redis.call('HSET', K.worker, 'instance', A.instance) end
redis.call('HSET', K.worker, 'heartbeat_at', seconds(now), unpack(A.fields))
redis.call('PEXPIRE', K.worker, A.live_ms)
local before = redis.call('ZSCORE', K.workers, A.worker)
local was_silent = before and number(before) < now - A.live_ms
redis.call('ZADD', K.workers, int(now), A.worker)
-- Stays when this worker is gone, as long as it may have taken a command.
redis.call('ZADD', K.takers, int(now), A.worker)
for _, scheme in ipairs(A.schemes) do
  redis.call('ZADD', K.schemes, 'GT', int(now + A.live_ms), scheme)
end

-- Who was silent for so long was killed, or is cut off, and nobody else tells of it. One that had
-- to end has said so itself. Who was silent, too, waits for the next time: Redis was away for all.
local function has_told(name, last)
  for _, raw in ipairs(redis.call('LRANGE', K.incidents, 0, 9)) do
    local read, told = pcall(cjson.decode, raw)
    if read and told.worker == name and number(told.at) * 1000 >= last then return true end
  end
end
local silent = was_silent and {} or
  redis.call('ZRANGEBYSCORE', K.workers, '-inf', int(now - A.live_ms), 'WITHSCORES')
for i = 1, #silent, 2 do
  local name, last = silent[i], number(silent[i + 1])
  redis.call('ZREM', K.workers, name)
  if not has_told(name, last) then
    redis.call('LPUSH', K.incidents, cjson.encode({worker = name, at = last / 1000,
      reason = 'not heard since then: it was killed, or is cut off from Redis'}))
    redis.call('LTRIM', K.incidents, 0, A.keep_incidents - 1)
    redis.call('EXPIRE', K.incidents, A.keep_incidents_s)
    for_viewers('HINCRBY', K.totals, 'incidents', 1)
  end
end

-- A.tokens are in the order of their computation: the first is what the device does now. When
-- that is past its deadline or was taken over, the device hangs.
local function held_as(token)
  return round ~= '' and redis.call('HGET', K.claims, token) or
    redis.call('HGET', K.chunk_claims, token)
end
local first = A.tokens[1] and held_as(A.tokens[1])
local hangs = not first or now >= cjson.decode(first).at + A.deadline_ms

local function renew(claims, leases)
  for place, token in ipairs(A.tokens) do
    local raw = redis.call('HGET', claims, token)
    -- A lease of 0 was given back, or its round changed: its positions must stay free.
    if raw and number(redis.call('ZSCORE', leases, token)) > 0 then
      local claim = cjson.decode(raw)
      if place > 1 and not hangs then  -- it waits, which is not held against it
        claim.at = int(now)
        redis.call('HSET', claims, token, cjson.encode(claim))
      end
      -- Past its deadline it is taken for hung.
      if now < claim.at + A.deadline_ms then
        redis.call('ZADD', leases, 'XX', int(now + A.lease_ms), token)
      end
    end
  end
end
if round ~= '' then renew(K.claims, K.leases) end
renew(K.chunk_claims, K.chunk_leases)
if state ~= 'STOPPED' then refresh() end
end_when_due(A.epoch)

if state == 'GENERATING' then
  sample()
  flush_when_due(hash(K.run))
end
if A.counted and A.counted.round == round then
  for i = 1, #A.counted.bins, 2 do
    for_viewers('HINCRBY', K.histogram, A.counted.bins[i], A.counted.bins[i + 1])
  end
end

-- Since when the oldest callback waits: an entry's id begins with its time.
local looked = for_viewers('HGET', K.callbacks, 'looked_at')
if type(looked) ~= 'table' and now >= number(looked) * 1000 + 1000 then
  local first = redis.call('XRANGE', K.outbox, '-', '+', 'COUNT', 1)[1]
  redis.call('HSET', K.callbacks, 'looked_at', seconds(now),
    'oldest_at', first and seconds(string.match(first[1], '%d+') + offset_ms()) or '0')
end
local reference = redis.call('HMGET', K.reference, 'distances', 'worker')
return cjson.encode({alive = true, distances = reference[1] or nil, worker = reference[2] or nil})
