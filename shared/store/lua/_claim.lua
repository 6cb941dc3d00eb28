-- How work is claimed. A.ask has what a worker asks for:
--   kinds         of work, `chunk` (of a validation) and `batch` (of the round), in their order
--   token         of the claim; the same again after a lost answer gives the same work
--   worker, fingerprint?, schemes?, lease_ms, max_attempts
--
-- Claims: a token -> positions, and a token -> end of its lease. Rounds and validations have a
-- pair each. An ended lease is a worker that died; a lease of 0 was given back by a live one.

-- Take over the oldest claim whose lease ended. Gives it with its failures counted, or nil.
local function take_expired(claims, leases)
  for _, token in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', int(now_ms()), 'LIMIT', 0, 64)) do
    local raw = redis.call('HGET', claims, token)
    local died = number(redis.call('ZSCORE', leases, token)) > 0
    redis.call('ZREM', leases, token)
    redis.call('HDEL', claims, token)
    if raw then
      local claim = cjson.decode(raw)
      if died then
        claim.attempts = claim.attempts + 1
        for_viewers('HINCRBY', K.totals, 'taken_over', 1)
        claim.error = 'worker ' .. claim.worker .. ' did not finish it'
      end
      return claim
    end
  end
end

-- Whether the round's nonces may be computed by this worker's model: those of two would be judged
-- by the wrong one.
local function is_of_its_model(run)
  local ask, why = A.ask, 'the round began with the model '
  if not ask.fingerprint then return true end
  if not run.fingerprint then
    redis.call('HSET', K.run, 'fingerprint', ask.fingerprint)
  elseif run.fingerprint ~= ask.fingerprint then
    put('error', why .. run.fingerprint .. ', worker ' .. ask.worker .. ' has ' .. ask.fingerprint ..
      ': init a new round, or start a worker with the old model')
    return false
  elseif string.sub(redis.call('HGET', K.round, 'error') or '', 1, #why) == why then
    put('error', '')
  end
  return true
end

-- Whether this worker computes the round's scheme: it would only have batches fail, until they count
-- as failed. What the error says already is not replaced: others may well compute the round.
local function is_of_its_schemes()
  local scheme = A.ask.schemes and redis.call('HGET', K.round, 'scheme')
  if not scheme then return true end
  for _, known in ipairs(A.ask.schemes) do
    if known == scheme then return true end
  end
  if (redis.call('HGET', K.round, 'error') or '') == '' then
    put('error', 'worker ' .. A.ask.worker .. " can't compute the scheme " .. scheme ..
      ': start one of a version and an engine that can')
  end
  return false
end

local function new_batch(run)
  if state ~= 'GENERATING' or not (is_of_its_schemes() and is_of_its_model(run)) then return nil end
  local batch = take_expired(K.claims, K.leases)
  while batch and batch.attempts >= A.ask.max_attempts do
    count('total_failed', batch.count)
    put('error', 'positions ' .. batch.start .. ' to ' .. int(batch.start + batch.count - 1) ..
      ' failed ' .. batch.attempts .. ' times: ' .. batch.error)
    batch = take_expired(K.claims, K.leases)
  end
  if batch then return batch end
  local size = number(redis.call('HGET', K.round, 'batch_size'))
  if number(run.positions) > 0 then
    size = math.min(size, run.positions - run.cursor)
    if size == 0 then
      put('error', 'all ' .. run.positions .. ' nonces of this node were handed out')
      return nil
    end
  end
  redis.call('HSET', K.run, 'cursor', int(run.cursor + size))
  return {start = run.cursor, count = size, attempts = 0}
end

local function new_chunk()
  local chunk = take_expired(K.chunk_claims, K.chunk_leases)
  if chunk then return chunk end
  local raw = redis.call('LPOP', K.chunks)
  return raw and cjson.decode(raw)
end

-- The work of `kind` that a lost answer was about. A change of the round, or the end of its lease,
-- may have freed it.
local function held(kind, run)
  if kind == 'batch' and state ~= 'GENERATING' then return nil end
  local raw = redis.call('HGET', kind == 'batch' and K.claims or K.chunk_claims, A.ask.token)
  if raw and (kind == 'chunk' or is_of_its_model(run)) then return cjson.decode(raw) end
end

local function new(kind, run)
  if kind == 'batch' then return new_batch(run) end
  return new_chunk()
end

-- What is asked for, as an answer: its kind, the claim, and the epoch, config and trace of a batch. Or
-- `idle`, when there is nothing. `run` is what K.run holds.
local function next_work(run)
  local ask = A.ask
  for _, look in ipairs({held, new}) do
    for _, kind in ipairs(ask.kinds) do
      local claim = look(kind, run)
      if claim then
        local claims, leases = K.claims, K.leases
        local answer = {kind = kind, claim = claim, epoch = run.epoch, config = run.config,
          traceparent = run.traceparent}
        if kind == 'chunk' then
          claims, leases = K.chunk_claims, K.chunk_leases
          claim.given_up = claim.attempts >= ask.max_attempts
          answer = {kind = kind, claim = claim}
        end
        claim.worker, claim.at = ask.worker, int(now_ms())
        redis.call('HSET', claims, ask.token, cjson.encode(claim))
        redis.call('ZADD', leases, int(now_ms() + ask.lease_ms), ask.token)
        return answer
      end
    end
  end
  return {idle = true}
end
