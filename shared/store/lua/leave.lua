-- A worker goes: it is shown no more. The last one frees the namespace for another model.
-- One that lost its name, or never had it, takes nobody else off.
-- K writes: workers, worker(worker), model
-- A: worker, instance?

local holder = redis.call('HGET', K.worker, 'instance')
if A.instance and holder and holder ~= A.instance then return 0 end
redis.call('DEL', K.worker)
redis.call('ZREM', K.workers, A.worker)
if redis.call('ZCARD', K.workers) == 0 then redis.call('DEL', K.model) end
return 1
