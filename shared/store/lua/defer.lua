-- Show why a callback waits for another attempt, unless another sender has settled it meanwhile.
-- K reads: outbox
-- K writes: status, callbacks, counted=round(round)
-- A: round, entry, error

if #redis.call('XRANGE', K.outbox, A.entry, A.entry) == 0 then return 0 end
show_failure(A.round, TRIED_AGAIN .. A.error)
return 1
