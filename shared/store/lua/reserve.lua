-- Keep room for the nonces of a job that is about to be sent, unless too much waits already: then
-- how many nonces and commands do. Without a worker that opens it the room is free again after
-- A.for_s seconds. That is by the server's own time: a controller may not touch our clock.
-- A.again is of a job that was sent: it keeps the room that it has. One that a worker has opened since
-- needs nothing of this, and may even have ended.
-- K reads: queue(namespace)
-- K writes: reserved, owed, expected(job)
-- A: namespace, job, nonces, most, most_commands, for_s, keep_s, again?

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, lapsed in ipairs(redis.call('ZRANGEBYSCORE', K.reserved, '-inf', int(now))) do
  redis.call('HDEL', K.owed, lapsed)
  redis.call('ZREM', K.reserved, lapsed)
end
local until_ms = int(now + A.for_s * 1000)
if A.again then
  redis.call('ZADD', K.reserved, 'XX', until_ms, A.job)
  return cjson.encode({reserved = true})
end
local waiting, commands = 0, redis.call('LLEN', K.queue)
for job, nonces in pairs(hash(K.owed)) do
  if job ~= A.job then waiting = waiting + number(nonces) end
end
if waiting + A.nonces > A.most or commands >= A.most_commands then
  return cjson.encode({waiting = {nonces = waiting, commands = commands}})
end
redis.call('HSET', K.owed, A.job, A.nonces)
redis.call('ZADD', K.reserved, until_ms, A.job)
redis.call('SET', K.expected, '1', 'EX', A.keep_s)
return cjson.encode({reserved = true})
