-- Claim the next chunk of a validation, one of a dead claim first. One that failed too often is
-- handed out as given up: its validation then ends with an error instead of a verdict.
-- K writes: clock, chunks, claims=chunk_claims, leases=chunk_leases
-- A: token, worker, lease_ms, max_attempts

local raw = redis.call('HGET', K.claims, A.token)
if raw then
  local held = cjson.decode(raw)
  hold(K.claims, K.leases, held)
  return cjson.encode({claim = held})
end
local claim = take_expired(K.claims, K.leases)
if not claim then
  raw = redis.call('LPOP', K.chunks)
  if not raw then return nil end
  claim = cjson.decode(raw)
end
claim.given_up = claim.attempts >= A.max_attempts
hold(K.claims, K.leases, claim)
return cjson.encode({claim = claim})
