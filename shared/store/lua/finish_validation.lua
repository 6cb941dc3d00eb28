-- End a validation with A.result or A.error, once: its ticket, its callback, its keys.
-- with _finish
-- K writes: verdicts, jobs, owed, job(job), job_dist(job), endings, outbox, clock, status, callbacks,
--   outcomes, totals, counted=round(round)
-- A: round?, job, keep_s, result?, error?, message?, evidence?, outcome, summary, keep_outcomes

if not finish('DONE') then return 0 end
if A.evidence then redis.call('HSET', K.job, 'evidence', A.evidence) end
return 1
