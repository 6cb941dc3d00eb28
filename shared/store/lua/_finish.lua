-- The end of the validation A.job, once: with A.result or A.error, its callback and its keys.
-- K.job then is in the state `as`. Whether it was open.
local function finish(as)
  redis.call('LREM', K.verdicts, 0, A.job)
  redis.call('ZREM', K.jobs, A.job)
  redis.call('HDEL', K.owed, A.job)
  if redis.call('HGET', K.job, 'state') ~= 'OPEN' then return false end
  redis.call('HSET', K.job, 'state', as)
  redis.call('HDEL', K.job, 'batch')
  redis.call('EXPIRE', K.job, A.keep_s)
  redis.call('UNLINK', K.job_dist)
  ending({task = A.job, result = A.result, error = A.error})
  for_viewers('XADD', K.outcomes, 'MAXLEN', A.keep_outcomes, '*', 'summary', A.summary)
  for_viewers('HINCRBY', K.totals, 'validations:' .. A.outcome, 1)
  if A.message then
    post(A.message)
    count_callback(A.message.round, 'pending', 1)
  end
  return true
end
