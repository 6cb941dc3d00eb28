-- Show A.meta, the state of a task, to whoever waits for it, unless it is in a state that stays.
-- Celery's own way reads and then writes, so two reports at once could undo an end.
-- K reads: tickets=tickets(round)|jobs
-- K writes: result(task)
-- A: task, meta, keep_s, unless, open, round?

-- A Redis that lost the work must not show progress of it: its caller would wait for ever instead
-- of sending it again. Tickets of a round are a set, open validations are sorted.
if A.open then
  local found
  if A.round then
    found = redis.call('SISMEMBER', K.tickets, A.task) == 1
  else
    found = redis.call('ZSCORE', K.tickets, A.task)
  end
  if not found then return 0 end
end
-- What can't be read is no end, and is replaced.
local is_ours = redis.call('TYPE', K.result).ok == 'string'
local read, now = pcall(cjson.decode, is_ours and redis.call('GET', K.result) or 'null')
if read and type(now) == 'table' then
  for _, state in ipairs(A.unless) do
    if now.status == state then return 0 end
  end
end
redis.call('SET', K.result, A.meta, 'EX', A.keep_s)
-- A waiting caller listens on the channel of that name.
redis.call('PUBLISH', K.result, A.meta)
return 1
