-- End a validation with A.result or A.error, once: its ticket, its callback, its keys.
-- K writes: verdicts, jobs, job(job), job_dist(job), endings, outbox, clock, status, callbacks,
--   outcomes, totals, counted=round(round)
-- A: round?, job, keep_s, result?, error?, message?, outcome, summary, keep_outcomes

redis.call('LREM', K.verdicts, 0, A.job)
redis.call('ZREM', K.jobs, A.job)
if redis.call('HGET', K.job, 'state') ~= 'OPEN' then return 0 end
redis.call('HSET', K.job, 'state', 'DONE')
redis.call('HDEL', K.job, 'batch')
redis.call('EXPIRE', K.job, A.keep_s)
redis.call('UNLINK', K.job_dist)
ending({task = A.job, result = A.result, error = A.error})
redis.call('XADD', K.outcomes, 'MAXLEN', A.keep_outcomes, '*', 'summary', A.summary)
redis.call('HINCRBY', K.totals, 'validations:' .. A.outcome, 1)
if A.message then
  post(A.message)
  count_callback(A.message.round, 'pending', 1)
end
return 1
