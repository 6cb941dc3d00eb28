-- Claim the next positions of the round: those of a dead claim first, else at the cursor.
-- with _round
-- K writes: status, clock, round(round), run(round), claims(round), leases(round)
-- A: round, token, worker, lease_ms, max_attempts, fingerprint?

local other = moved()
if other then return other end
if state ~= 'GENERATING' then return cjson.encode({idle = true}) end
local run = hash(K.run)
local function reply(claim)
  return cjson.encode({claim = claim, epoch = run.epoch, config = run.config})
end
-- A round is of one model: nonces of two would be judged by the wrong one.
if A.fingerprint then
  local why = 'the round began with the model '
  local complained = string.sub(redis.call('HGET', K.round, 'error') or '', 1, #why) == why
  if not run.fingerprint then
    redis.call('HSET', K.run, 'fingerprint', A.fingerprint)
  elseif run.fingerprint ~= A.fingerprint then
    put('error', why .. run.fingerprint .. ', worker ' .. A.worker .. ' has ' .. A.fingerprint ..
      ': init a new round, or start a worker with the old model')
    return cjson.encode({idle = true})
  elseif complained then
    put('error', '')
  end
end
local claim
-- A repeat of a claim whose answer was lost on the way; a change of the round may have freed it.
local raw = redis.call('HGET', K.claims, A.token)
if raw then
  claim = cjson.decode(raw)
  hold(K.claims, K.leases, claim)
  return reply(claim)
end

claim = take_expired(K.claims, K.leases)
while claim and claim.attempts >= A.max_attempts do
  count('total_failed', claim.count)
  put('error', 'positions ' .. claim.start .. ' to ' .. int(claim.start + claim.count - 1) ..
    ' failed ' .. claim.attempts .. ' times: ' .. claim.error)
  claim = take_expired(K.claims, K.leases)
end
if not claim then
  local batch = number(redis.call('HGET', K.round, 'batch_size'))
  claim = {start = run.cursor, count = batch, attempts = 0}
  redis.call('HSET', K.run, 'cursor', int(run.cursor + batch))
end
hold(K.claims, K.leases, claim)
return reply(claim)
