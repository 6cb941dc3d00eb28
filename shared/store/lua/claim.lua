-- Claim the next work: what a dead or a stopping worker left first, else what is new.
-- with _round
-- with _claim
-- K reads: schemes
-- K writes: status, clock, endings, outbox, round(round), run(round), gathered(round),
--   claims(round), leases(round), tickets(round), history(round), chunks, chunk_claims,
--   chunk_leases, totals
-- A: round, ask

local other = moved()
if other then return other end
end_when_due(A.ask.token)
local run = state == 'GENERATING' and hash(K.run) or {}
flush_when_due(run)
return cjson.encode(next_work(run))
