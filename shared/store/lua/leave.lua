-- A worker goes: it is shown no more. The last one frees the namespace for another model.
-- K writes: workers, worker(worker), model
-- A: worker

redis.call('DEL', K.worker)
redis.call('ZREM', K.workers, A.worker)
if redis.call('ZCARD', K.workers) == 0 then redis.call('DEL', K.model) end
return 1
