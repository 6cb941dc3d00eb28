-- End a validation with A.result or A.error, once: its ticket, its callback, its keys.
-- K writes: verdicts, jobs, job(job), job_dist(job), endings, outbox, clock, status, callbacks,
--   counted=round(round)
-- A: round?, job, keep_s, result?, error?, message?

redis.call('LREM', K.verdicts, 0, A.job)
redis.call('ZREM', K.jobs, A.job)
if redis.call('HGET', K.job, 'state') ~= 'OPEN' then return 0 end
redis.call('HSET', K.job, 'state', 'DONE')
redis.call('HDEL', K.job, 'batch')
redis.call('EXPIRE', K.job, A.keep_s)
redis.call('UNLINK', K.job_dist)
ending({task = A.job, result = A.result, error = A.error})
if A.message then
  post(A.message)
  count_callback(A.message.round, 'pending', 1)
end
return 1
