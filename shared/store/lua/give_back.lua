-- Give a claim back, of A.round or of a validation: unharmed (a shutdown), or with A.error (the
-- engine failed on it).
-- K writes: claims=claims(round)|chunk_claims, leases=leases(round)|chunk_leases
-- A: round?, token, error?

local raw = redis.call('HGET', K.claims, A.token)
if not raw then return 0 end
local claim = cjson.decode(raw)
if A.error then
  claim.attempts = claim.attempts + 1
  claim.error = A.error
  redis.call('HSET', K.claims, A.token, cjson.encode(claim))
end
redis.call('ZADD', K.leases, 0, A.token)
publish('work')
return 1
