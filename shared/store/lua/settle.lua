-- Take a callback out of the outbox as A.outcome (delivered or refused), once.
-- K writes: outbox, status, callbacks, counted=round(round)
-- A: round, group, entry, outcome, error?

redis.call('XACK', K.outbox, A.group, A.entry)
if redis.call('XDEL', K.outbox, A.entry) == 0 then return 0 end
count_callback(A.round, 'pending', -1)
count_callback(A.round, A.outcome, 1, A.error)
return 1
