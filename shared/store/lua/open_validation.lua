-- Record a validation: A.command is its id and its ticket. The round is not touched.
-- A.round is the one whose config judges; the batch may have brought its own instead.
-- with _round
-- K reads: status
-- K writes: clock, command(command), job(command), jobs, owed, reserved, chunks, verdicts
-- A: round?, command, memory_s, batch, config?, scheme, total, chunks, refusal?, traceparent?

local known = remembered() or moved()
if known then return known end
-- A repeat that came after its outcome was forgotten must not begin it again.
if redis.call('EXISTS', K.job) == 1 then return answer({ticket = A.command}) end
redis.call('ZREM', K.reserved, A.command)
if A.refusal then
  redis.call('HDEL', K.owed, A.command)
  return answer(A.refusal)
end
redis.call('HSET', K.job, 'batch', A.batch, 'config', A.config, 'state', 'OPEN',
  'round', A.round or '', 'total', A.total, 'done', '0', 'opened_at', seconds(now_ms()),
  'traceparent', A.traceparent or '')
redis.call('ZADD', K.jobs, int(now_ms()), A.command)
redis.call('HSET', K.owed, A.command, A.total)
for _, chunk in ipairs(A.chunks) do
  redis.call('RPUSH', K.chunks, cjson.encode(
    {job = A.command, scheme = A.scheme, start = chunk[1], count = chunk[2], attempts = 0}))
end
if #A.chunks == 0 then
  redis.call('RPUSH', K.verdicts, A.command)
  publish('verdicts')
end
publish('work')
return answer({ticket = A.command})
