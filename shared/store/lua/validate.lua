-- End generation; the round is then validating. With A.config it opens A.new_round first.
-- with _round
-- K reads: tombstone(new_round)
-- K writes: status, clock, endings, outbox, gathered(round), command(command), round(round),
--   nonces(round), found(round), run(round), history(round), histogram(round), claims(round),
--   leases(round), tickets(round), totals, kept, new_round=round(new_round), new_run=run(new_round)
-- A: round, command, memory_s, keep_s, epoch, round_id?, new_round?, config?, fields?, positions?,
--   replace?

local known = remembered() or moved()
if known then return known end
local refusal
if A.config then refusal = open_round() else refusal = not_current() end
if refusal then return answer(refusal) end
leave_for('VALIDATING')
return answer_status()
