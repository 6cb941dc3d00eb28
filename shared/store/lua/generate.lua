-- Start or resume generation; A.command becomes a ticket that the round's end will end.
-- With A.config it opens A.new_round first.
-- with _round
-- K reads: tombstone(new_round)
-- K writes: status, clock, endings, command(command), round(round), nonces(round), found(round),
--   run(round), history(round), histogram(round), claims(round), leases(round), tickets(round),
--   totals, new_round=round(new_round), new_run=run(new_round),
--   new_tickets=tickets(new_round)
-- A: round, command, memory_s, keep_s, epoch, round_id?, new_round?, config?, fields?, replace?,
--   traceparent?

local known = remembered() or moved()
if known then return known end
local refusal
if A.config then refusal = open_round() else refusal = not_current() end
if refusal then return answer(refusal) end
redis.call('SADD', K.tickets, A.command)
if state ~= 'GENERATING' then
  enter('GENERATING')
  -- The trace that its batches belong to.
  redis.call('HSET', K.run, 'traceparent', A.traceparent or '')
end
return answer_status()
