-- How work is claimed. A.ask has what a worker asks for:
--   kinds         of work, `chunk` (of a validation) and `batch` (of the round), in their order
--   token         of the claim; the same again after a lost answer gives the same work
--   worker, fingerprint?, schemes?, lease_ms, max_attempts
--
-- Claims: a token -> positions, and a token -> end of its lease. Rounds and validations have a
-- pair each. An ended lease is a worker that died; a lease of 0 was given back by a live one.

-- Take over the oldest claim whose lease ended, of those that `fits` says yes to. Gives it with its
-- failures counted, or nil.
local function take_expired(claims, leases, fits)
  for _, token in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', int(now_ms()), 'LIMIT', 0, 64)) do
    local raw = redis.call('HGET', claims, token)
    local claim = raw and cjson.decode(raw)
    if not claim or fits(claim) then
      local died = number(redis.call('ZSCORE', leases, token)) > 0
      redis.call('ZREM', leases, token)
      redis.call('HDEL', claims, token)
      if claim and died then
        claim.attempts = claim.attempts + 1
        for_viewers('HINCRBY', K.totals, 'taken_over', 1)
        claim.error = 'worker ' .. claim.worker .. ' did not finish it'
      end
      if claim then return claim end
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

-- Whether this worker computes a scheme. Work of another one would only fail here, until it counts
-- as failed.
local function computes(scheme)
  if not (A.ask.schemes and scheme) then return true end
  for _, known in ipairs(A.ask.schemes) do
    if known == scheme then return true end
  end
  return false
end

-- Whether the round is of a scheme of this worker. What the error says already is not replaced:
-- others may well compute the round.
local function is_of_its_schemes()
  local scheme = redis.call('HGET', K.round, 'scheme')
  if computes(scheme) then return true end
  if (redis.call('HGET', K.round, 'error') or '') == '' then
    put('error', 'worker ' .. A.ask.worker .. " can't compute the scheme " .. scheme ..
      ': start one of a version and an engine that can')
  end
  return false
end

local function new_batch(run)
  if state ~= 'GENERATING' or not (is_of_its_schemes() and is_of_its_model(run)) then return nil end
  local function any() return true end
  local batch = take_expired(K.claims, K.leases, any)
  while batch and batch.attempts >= A.ask.max_attempts do
    count('total_failed', batch.count)
    put('error', 'positions ' .. batch.start .. ' to ' .. int(batch.start + batch.count - 1) ..
      ' failed ' .. batch.attempts .. ' times: ' .. batch.error)
    batch = take_expired(K.claims, K.leases, any)
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

-- Whether a chunk is for this worker. One of a scheme that it does not compute is left to others, or,
-- if no worker lives that does, given up here, so that whoever waits for the verdict learns of it.
local function is_for_it(chunk)
  if computes(chunk.scheme) then return true end
  if now_ms() < number(redis.call('ZSCORE', K.schemes, chunk.scheme)) then return false end
  chunk.attempts = A.ask.max_attempts
  chunk.error = chunk.error or 'no live worker can compute the scheme ' .. chunk.scheme
  return true
end

local function new_chunk()
  local chunk = take_expired(K.chunk_claims, K.chunk_leases, is_for_it)
  if chunk then return chunk end
  -- It is mostly the first. Behind so many that are left to others it waits until these are fewer.
  for at = 0, 63 do
    local raw = redis.call('LINDEX', K.chunks, at)
    if not raw then return nil end
    chunk = cjson.decode(raw)
    if is_for_it(chunk) then
      redis.call('LREM', K.chunks, 1, raw)
      return chunk
    end
  end
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
