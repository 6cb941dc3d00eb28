-- Start or resume generation; A.command becomes a ticket that the round's end will end.
-- With A.config it opens A.new_round first. It ends by itself at A.until_valid valid nonces, and
-- after A.for_ms.
-- with _round
-- K reads: tombstone(new_round)
-- K writes: status, clock, endings, outbox, gathered(round), command(command), round(round),
--   nonces(round), found(round), run(round), history(round), histogram(round), claims(round),
--   leases(round), tickets(round), totals, kept, new_round=round(new_round),
--   new_run=run(new_round), new_tickets=tickets(new_round)
-- A: round, command, memory_s, keep_s, epoch, round_id?, new_round?, config?, fields?, positions?,
--   replace?, traceparent?, until_valid?, for_ms?

local known = remembered() or moved()
if known then return known end
local refusal
if A.config then refusal = open_round() else refusal = not_current() end
if refusal then return answer(refusal) end
redis.call('SADD', K.tickets, A.command)
-- A new start forgets where the last one was to end. Who only joins one changes nothing of it.
if A.until_valid or A.for_ms or state ~= 'GENERATING' then
  for _, key in ipairs({K.status, K.round}) do redis.call('HDEL', key, 'until_valid', 'ends_at') end
  if A.until_valid then put('until_valid', int(A.until_valid)) end
  if A.for_ms then put('ends_at', seconds(now_ms() + A.for_ms)) end
end
if state ~= 'GENERATING' then
  enter('GENERATING')
  -- The trace that its batches belong to.
  redis.call('HSET', K.run, 'traceparent', A.traceparent or '')
end
end_when_due(A.epoch)
return answer_status()
