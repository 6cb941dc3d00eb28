-- End a validation with A.result or A.error, once: its ticket, its callback, its keys.
-- with _finish
-- K writes: verdicts, jobs, job(job), job_dist(job), endings, outbox, clock, status, callbacks,
--   outcomes, totals, counted=round(round)
-- A: round?, job, keep_s, result?, error?, message?, outcome, summary, keep_outcomes

return finish('DONE') and 1 or 0
