-- Show why a callback waits for another attempt.
-- K writes: status, callbacks, counted=round(round)
-- A: round, error

for _, key in ipairs(callback_counters(A.round)) do
  redis.call('HSET', key, 'callback_error', TRIED_AGAIN .. A.error)
end
return 1
