-- Take a callback out of the outbox as A.outcome (delivered or refused), once.
redis.call('XACK', K.outbox, A.group, A.entry)
if redis.call('XDEL', K.outbox, A.entry) == 0 then return 0 end
-- A round that has expired must not come back as a key without a time to live.
if not K.round or redis.call('EXISTS', K.round) == 0 then return 1 end
local targets = {K.round}
if redis.call('HGET', K.status, 'round_id') == A.round then targets[2] = K.status end
for _, key in ipairs(targets) do
  redis.call('HINCRBY', key, 'callbacks_pending', -1)
  redis.call('HINCRBY', key, 'callbacks_' .. A.outcome, 1)
  if A.error then redis.call('HSET', key, 'callback_error', A.error) end
end
return 1
