-- Count a computed batch and keep its valid nonces, once and only while its claim holds. In the same
-- step its worker gets the next work, if it asks for it.
-- with _round
-- with _claim
-- K reads: schemes
-- K writes: status, clock, endings, outbox, round(round), nonces(round), found(round), run(round),
--   gathered(round), history(round), claims(round), leases(round), tickets(round), chunks,
--   chunk_claims, chunk_leases, totals
-- A: round, token, epoch, checked, failed, valid, max_valid, profile, error?, message?, ask?

-- Of another round the keys are not declared: its worker asks again.
if moved() then return cjson.encode({refused = 'the round is over'}) end
local run = hash(K.run)
local totals = redis.call('HMGET', K.round, 'total_checked', 'total_failed', 'total_valid',
  'until_valid', 'ends_at')
local checked, failed, valid = number(totals[1]), number(totals[2]), number(totals[3])

local function refusal()
  if state ~= 'GENERATING' then return 'the round is ' .. state end
  if run.epoch ~= A.epoch then return 'the round went on without it' end
  if redis.call('HEXISTS', K.claims, A.token) == 0 then return 'its positions were taken over' end
  if valid + #A.valid / 2 <= A.max_valid then return nil end
  -- The batch that reaches the count at which it is to end counts as a whole.
  local least = number(totals[4])
  if least > 0 and least <= A.max_valid then return nil end
  local message = 'the round holds ' .. int(valid) .. ' valid nonces and POC_MAX_VALID is ' ..
    int(A.max_valid) .. ': it was stopped; raise the limit, or let fewer nonces count'
  put('error', message)
  A.epoch = A.token  -- as random as an epoch has to be
  leave_for('STOPPED', {error = 'RoundFailed', message = message})
  return message
end

local function commit()
  redis.call('HDEL', K.claims, A.token)
  redis.call('ZREM', K.leases, A.token)
  -- A call takes some thousand words at most.
  for first = 1, #A.valid, 2000 do
    local last, nonces = math.min(first + 1999, #A.valid), {}
    for at = first, last, 2 do nonces[#nonces + 1] = A.valid[at] end
    redis.call('HSET', K.nonces, unpack(A.valid, first, last))
    redis.call('RPUSH', K.found, unpack(nonces))
  end
  local changes = {
    'total_checked', int(checked + A.checked), 'total_failed', int(failed + A.failed),
    'total_valid', int(valid + #A.valid / 2), 'profile', A.profile,
  }
  if A.error then
    changes[#changes + 1] = 'error'
    changes[#changes + 1] = A.error
  end
  if A.message then
    post_or_gather(A.message, run)
  end
  refresh(run, checked + A.checked, changes)
  valid = valid + #A.valid / 2
end

local refused = refusal()
if not refused then commit() end
end_when_due(A.token, {totals[4], totals[5]}, valid)
if state == 'GENERATING' then flush_when_due(run) end
local answer = A.ask and next_work(run) or {idle = true}
answer.refused = refused
return cjson.encode(answer)
