-- Open a new round.
-- with _round
-- K reads: tombstone(new_round)
-- K writes: status, clock, endings, outbox, gathered(round), command(command), round(round),
--   nonces(round), found(round), run(round), history(round), histogram(round), claims(round),
--   leases(round), tickets(round), totals, kept, new_round=round(new_round), new_run=run(new_round)
-- A: round, command, memory_s, keep_s, epoch, new_round, config, fields, positions?, replace

local known = remembered() or moved()
if known then return known end
local refusal = open_round()
if refusal then return answer(refusal) end
return answer_status()
