-- End the open validation A.job with A.error before it has a verdict, and drop what is to be
-- computed of it. One that has ended stays as it is. A.message tells its receiver; A.read says that
-- it was made of the validation, and not of one that was not there yet.
-- with _round
-- with _finish
-- K reads: tickets(round)
-- K writes: verdicts, jobs, owed, job(job), job_dist(job), endings, outbox, clock, status, callbacks,
--   outcomes, totals, counted=round(counted), command(command), chunks, chunk_claims, chunk_leases
-- A: round, command, memory_s, job, counted?, keep_s, error, message?, outcome, summary,
--   keep_outcomes, read

local known = remembered() or moved()
if known then return known end
local was = redis.call('HGET', K.job, 'state')
if not was then
  local why = 'no validation ' .. A.job .. ' is kept: it is unknown, it ended too long ago, or its ' ..
    'command still waits in the queue'
  if round ~= '' and redis.call('SISMEMBER', K.tickets, A.job) == 1 then
    why = A.job .. ' is no validation, but the ticket of round ' .. round .. ': `poc stop` ends that'
  end
  return answer({error = 'InvalidRequest', message = why})
end
if was == 'OPEN' and not A.read then return cjson.encode({again = true}) end

local function is_its(raw) return cjson.decode(raw).job == A.job end

if finish('CANCELLED') then
  was = 'CANCELLED'
  local chunks = redis.call('LRANGE', K.chunks, 0, -1)
  redis.call('DEL', K.chunks)
  for _, raw in ipairs(chunks) do
    if not is_its(raw) then redis.call('RPUSH', K.chunks, raw) end
  end
  local claims = redis.call('HGETALL', K.chunk_claims)
  for i = 1, #claims, 2 do
    if is_its(claims[i + 1]) then
      redis.call('HDEL', K.chunk_claims, claims[i])
      redis.call('ZREM', K.chunk_leases, claims[i])
    end
  end
end
return answer({cancelled = was == 'CANCELLED'})
