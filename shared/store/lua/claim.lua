-- Claim the next work: what a dead or a stopping worker left first, else what is new.
-- with _round
-- with _claim
-- K writes: status, clock, round(round), run(round), claims(round), leases(round), chunks,
--   chunk_claims, chunk_leases, totals
-- A: round, ask

return moved() or cjson.encode(next_work(state == 'GENERATING' and hash(K.run) or {}))
