-- Take a callback out of the outbox as A.outcome (delivered or refused), once.
-- K writes: outbox, status, callbacks, totals, counted=round(round)
-- A: round, group, entry, outcome, error?, reason?

redis.call('XACK', K.outbox, A.group, A.entry)
if redis.call('XDEL', K.outbox, A.entry) == 0 then return 0 end
count_callback(A.round, 'pending', -1)
count_callback(A.round, A.outcome, 1)
if A.error then show_failure(A.round, A.error) end
for_viewers('HINCRBY', K.totals, A.reason and 'refused:' .. A.reason or A.outcome, 1)
if A.reason then
  for _, key in ipairs(callback_counters(A.round)) do
    redis.call('HINCRBY', key, 'refused:' .. A.reason, 1)
  end
end
if A.outcome ~= 'delivered' then return 1 end
local function forget_trouble(key, field)
  local error = redis.call('HGET', key, field) or ''
  if string.sub(error, 1, #TRIED_AGAIN) == TRIED_AGAIN then redis.call('HSET', key, field, '') end
end
for _, key in ipairs(callback_counters(A.round)) do forget_trouble(key, 'callback_error') end
forget_trouble(K.callbacks, 'last_error')
return 1
