-- Keep the proofs of a chunk, once; the last chunk makes the validation ready for its verdict.
-- K writes: claims=chunk_claims, leases=chunk_leases, job(job), job_dist(job), owed, verdicts
-- A: token, job, start, count, proofs, error?, profile?, worker?, computer?

if redis.call('HEXISTS', K.claims, A.token) == 0 then
  return cjson.encode({refused = 'its chunk was taken over'})
end
redis.call('HDEL', K.claims, A.token)
redis.call('ZREM', K.leases, A.token)
if redis.call('HGET', K.job, 'state') ~= 'OPEN' then
  return cjson.encode({refused = 'the validation has ended'})
end
local model = A.profile and cjson.decode(A.profile).fingerprint
if model then
  redis.call('HSETNX', K.job, 'fingerprint', model)
  if redis.call('HGET', K.job, 'fingerprint') ~= model then
    A.proofs, A.error = '[]', 'its chunks were computed by different models'
  end
end
redis.call('HSET', K.job_dist, A.start, A.proofs)
if A.error then redis.call('HSET', K.job, 'error', A.error) end
if A.profile then redis.call('HSET', K.job, 'profile', A.profile) end
if A.computer then redis.call('HSET', K.job, 'by:' .. A.worker, A.computer) end
local done = redis.call('HINCRBY', K.job, 'done', A.count)
redis.call('HINCRBY', K.owed, A.job, -A.count)
if done >= number(redis.call('HGET', K.job, 'total')) then
  redis.call('RPUSH', K.verdicts, A.job)
  publish('verdicts')
end
return cjson.encode({committed = true})
