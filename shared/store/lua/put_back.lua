-- Put commands that a worker took, and that nobody works on, before those that wait: A.idle, by
-- their SHA-1, or, of a worker that lives no more, all. What was put back too often is set aside:
-- A.weight is what this time counts, A.most how much may come together.
-- K reads: worker(worker)
-- K writes: taken(worker), takers, queue(namespace), put_back, dead_letters, clock
-- A: worker, namespace, idle?, working?, weight, most, most_s, keep_items, keep_bytes, keep_s,
--   gone_ms

-- A list of another type is found out here, and not by Celery, which would try again for ever.
redis.call('LLEN', K.queue)
-- In the usual case all is worked on, and nothing of it, which may be large, has to be read.
if A.idle and #A.idle == 0 and redis.call('LLEN', K.taken) <= A.working then
  return cjson.encode({left = {}, back = 0, aside = 0})
end
if not A.idle and redis.call('EXISTS', K.worker) == 1 then
  return cjson.encode({left = {}, back = 0, aside = 0})
end
local chosen = {}
for _, sha in ipairs(A.idle or {}) do chosen[sha] = true end
-- The newest comes first, so that they are taken again in their old order.
local items = redis.call('LRANGE', K.taken, 0, -1)
local left, back, aside = {}, 0, 0
for _, item in ipairs(items) do
  local sha = redis.sha1hex(item)
  if A.idle and not chosen[sha] then
    left[#left + 1] = sha
  else
    local weight = redis.call('HINCRBY', K.put_back, sha, A.weight)
    redis.call('EXPIRE', K.put_back, A.most_s)
    if weight <= A.most then
      redis.call('RPUSH', K.queue, item)
      back = back + 1
    else
      redis.call('LPUSH', K.dead_letters, string.sub(item, 1, A.keep_bytes))
      redis.call('LTRIM', K.dead_letters, 0, A.keep_items - 1)
      redis.call('EXPIRE', K.dead_letters, A.keep_s)
      redis.call('HDEL', K.put_back, sha)
      aside = aside + 1
    end
    -- Last, so that it is somewhere whatever of these fails.
    redis.call('LREM', K.taken, 1, item)
  end
end
-- What it asked for just before it went may still come to it.
local seen = redis.call('ZSCORE', K.takers, A.worker)
if not A.idle and #items == 0 and seen and number(seen) < now_ms() - A.gone_ms then
  redis.call('ZREM', K.takers, A.worker)
end
return cjson.encode({left = left, back = back, aside = aside})
