-- Count a computed batch and keep its valid nonces, once and only while its claim holds.
-- with _round
-- K writes: status, clock, endings, outbox, round(round), nonces(round), found(round), run(round),
--   claims(round), leases(round), tickets(round)
-- A: round, token, epoch, next_epoch, checked, failed, valid, max_valid, profile, error?, message?

local other = moved()
if other then return cjson.encode({refused = 'the round is over'}) end
if state ~= 'GENERATING' then return cjson.encode({refused = 'the round is ' .. state}) end
if redis.call('HGET', K.run, 'epoch') ~= A.epoch then
  return cjson.encode({refused = 'the round went on without it'})
end
if redis.call('HEXISTS', K.claims, A.token) == 0 then
  return cjson.encode({refused = 'its positions were taken over'})
end
local valid = number(redis.call('HGET', K.round, 'total_valid'))
if valid + #A.valid > A.max_valid then
  local message = 'the round holds ' .. int(valid) .. ' valid nonces and POC_MAX_VALID is ' ..
    int(A.max_valid) .. ': it was stopped; raise the limit or lower r_target'
  put('error', message)
  A.epoch = A.next_epoch
  leave_for('STOPPED', {error = 'RoundFailed', message = message})
  return cjson.encode({refused = message})
end
redis.call('HDEL', K.claims, A.token)
redis.call('ZREM', K.leases, A.token)
count('total_checked', A.checked)
count('total_failed', A.failed)
count('total_valid', #A.valid)
for _, pair in ipairs(A.valid) do
  redis.call('HSET', K.nonces, pair[1], pair[2])
  redis.call('RPUSH', K.found, pair[1])
end
put('profile', A.profile)
if A.error then put('error', A.error) end
if A.message then
  post(A.message)
  count('callbacks_pending', 1)
end
refresh()
return cjson.encode({committed = true})
