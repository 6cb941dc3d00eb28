-- What the scripts that change a round share. K.round, K.run, ... are the current round's.

local seen = redis.call('HMGET', K.status, 'state', 'round_id')
local state, current = seen[1] or 'IDLE', seen[2] or ''
local round = A.round

-- The caller declared the keys of the round that it took for the current one. When it was wrong
-- it gets the right id and calls again. Without A.round the current one is none of its business.
local function moved()
  if A.round and current ~= A.round then return cjson.encode({moved = current}) end
end

local function put(...)
  redis.call('HSET', K.status, ...)
  if round ~= '' then redis.call('HSET', K.round, ...) end
end

local function count(field, by)
  if by == 0 then return end
  redis.call('HINCRBY', K.status, field, by)
  redis.call('HINCRBY', K.round, field, by)
end

-- Bring the fields that flow with time up to date, and put `changes` (name, value, ...) with them.
-- A caller that knows what K.run holds, and the new total_checked, saves reading them.
local function refresh(run, checked, changes)
  if round == '' then return end
  run = run or hash(K.run)
  checked = checked or number(redis.call('HGET', K.round, 'total_checked'))
  local now = now_ms()
  local elapsed, generating = number(run.elapsed_ms), number(run.generating_ms)
  if number(run.elapsed_since) > 0 then elapsed = elapsed + now - run.elapsed_since end
  if number(run.generating_since) > 0 then generating = generating + now - run.generating_since end
  local rate = 0
  if elapsed > 0 then rate = checked * 1000 / elapsed end
  -- The recent rate looks back over five to ten seconds of generating, more if batches take more.
  local from_ms, from_checked = number(run.window_ms), number(run.window_checked)
  if generating - number(run.next_window_ms) >= 5000 and checked > number(run.next_window_checked) then
    redis.call('HSET', K.run,
      'window_ms', run.next_window_ms or '0', 'window_checked', run.next_window_checked or '0',
      'next_window_ms', int(generating), 'next_window_checked', int(checked))
    from_ms, from_checked = number(run.next_window_ms), number(run.next_window_checked)
  end
  local recent = 0
  if state == 'GENERATING' and generating > from_ms then
    recent = (checked - from_checked) * 1000 / (generating - from_ms)
  end
  put('elapsed_seconds', seconds(elapsed), 'generating_seconds', seconds(generating),
    'rate_per_second', string.format('%.3f', rate),
    'recent_rate_per_second', string.format('%.3f', recent),
    'updated_at', seconds(now), unpack(changes or {}))
end

-- Note how far the round is, for whoever looks on. Samples become rarer as it goes on, so that there
-- are hundreds of them at most; one more says how it ended.
local function sample()
  local course = redis.call('HMGET', K.round, 'total_checked', 'total_valid', 'generating_seconds')
  local checked, generating = course[1] or '0', number(course[3])
  local last = redis.call('HMGET', K.run, 'sampled_s', 'sampled')
  local due = generating >= number(last[1]) + math.max(2, generating / 128)
  if state ~= 'GENERATING' then due = checked ~= (last[2] or '0') end
  if not due then return end
  redis.call('HSET', K.run, 'sampled_s', seconds(generating * 1000), 'sampled', checked)
  for_viewers('RPUSH', K.history,
    table.concat({seconds(now_ms()), checked, course[2] or '0'}, ' '))
end

-- Callbacks that are joined: their items wait in K.gathered, behind what they have in common, until
-- a second has passed since the last of such a message went out, or until they are that long. So the
-- first batch of a generation is told at once, and slow batches each by itself.
local GATHER_MS, GATHER_BYTES = 1000, 1000000

-- Queue what was gathered as one message.
local function flush()
  if not K.gathered then return end  -- the very first round
  local parts = redis.call('LRANGE', K.gathered, 0, -1)
  if #parts == 0 then return end
  local message = cjson.decode(table.remove(parts, 1))
  message.body = message.body .. table.concat(parts, ',') .. message.tail
  post(message)
  redis.call('DEL', K.gathered)
  redis.call('HDEL', K.run, 'gathered')
  redis.call('HSET', K.run, 'flushed_at', int(now_ms()))
end

local function flush_when_due(run)
  local bytes = number(run.gathered)
  if bytes == 0 then return end
  if bytes >= GATHER_BYTES or now_ms() - number(run.flushed_at) >= GATHER_MS then flush() end
end

-- Queue a callback, or put it to those that it may be joined with: then it counts as one with them.
local function post_or_gather(message, run)
  if #message.items == 0 then
    post(message)
    count('callbacks_pending', 1)
    return
  end
  local items, bytes = table.concat(message.items, ','), number(run.gathered)
  -- Without a first part, which a stray hand may have taken, nothing could be flushed any more.
  if bytes == 0 or redis.call('EXISTS', K.gathered) == 0 then
    bytes, message.items = 0, nil
    redis.call('RPUSH', K.gathered, cjson.encode(message))
    count('callbacks_pending', 1)
  end
  redis.call('RPUSH', K.gathered, items)
  run.gathered = int(bytes + #items)
  redis.call('HSET', K.run, 'gathered', run.gathered)
end

-- A new state. `epoch` fences: what was in flight under the old one is refused.
local function enter(new)
  local now, run = now_ms(), hash(K.run)
  if state == 'GENERATING' and new ~= 'GENERATING' then
    redis.call('HSET', K.run, 'generating_since', '0', 'generating_ms',
      int(number(run.generating_ms) + now - number(run.generating_since)))
    flush()
    -- Positions in flight are free at once; their late commits fail on the epoch.
    for _, token in ipairs(redis.call('ZRANGE', K.leases, 0, -1)) do
      redis.call('ZADD', K.leases, 0, token)
    end
  end
  if new == 'GENERATING' and state ~= 'GENERATING' then
    redis.call('HSET', K.run, 'generating_since', int(now))
    redis.call('HDEL', K.run, 'flushed_at')
  end
  if new == 'STOPPED' and number(run.elapsed_since) > 0 then
    redis.call('HSET', K.run, 'elapsed_since', '0', 'elapsed_ms',
      int(number(run.elapsed_ms) + now - run.elapsed_since))
  elseif new ~= 'STOPPED' and number(run.elapsed_since) == 0 then
    redis.call('HSET', K.run, 'elapsed_since', int(now))
  end
  redis.call('HSET', K.run, 'epoch', A.epoch)
  local was = state
  state = new
  put('state', state)
  refresh()
  if was == 'GENERATING' and new ~= 'GENERATING' then sample() end
  publish('work')
end

local function end_tickets(failure)
  local final = hash(K.round)
  for _, task in ipairs(redis.call('SMEMBERS', K.tickets)) do
    ending({task = task, round = round, status = final, error = failure})
  end
  redis.call('DEL', K.tickets)
end

-- End the running generation, as `new`; `failure` is what the tickets then fail with.
local function leave_for(new, failure)
  local was = state
  enter(new)
  if was == 'GENERATING' then end_tickets(failure) end
end

-- Stop the generation that has come to where it was to end: a count of valid nonces, or a time.
-- `asked` has until_valid and ends_at, if they are known. `epoch` is as random as A.epoch.
local function end_when_due(epoch, asked, valid)
  if state ~= 'GENERATING' then return end
  asked = asked or redis.call('HMGET', K.round, 'until_valid', 'ends_at')
  local least, at = number(asked[1]), number(asked[2])
  local due = at > 0 and now_ms() >= math.floor(at * 1000 + 0.5)
  if least > 0 and not due then
    due = (valid or number(redis.call('HGET', K.round, 'total_valid'))) >= least
  end
  if due then
    A.epoch = epoch
    leave_for('STOPPED')
  end
end

-- Open round A.new_round with A.config (as JSON) and A.fields (as the status shows it).
-- Gives nothing, or the error that refuses it.
local function open_round()
  if redis.call('EXISTS', K.tombstone) == 1 then
    return {error = 'RoundMismatch', message = 'Round ' .. A.new_round .. ' was stopped before it began'}
  end
  if redis.call('EXISTS', K.new_round) == 1 then
    return {error = 'InvalidRequest', message = 'Round id ' .. A.new_round .. ' was used before'}
  end
  if state == 'GENERATING' and not A.replace then
    return {error = 'RoundInProgress', message = 'Round already in progress'}
  end
  if round ~= '' then
    if state ~= 'STOPPED' then leave_for('STOPPED') end
    redis.call('UNLINK', K.claims, K.leases)
    for _, key in ipairs({K.round, K.nonces, K.found, K.run, K.history, K.histogram}) do
      redis.call('EXPIRE', key, A.keep_s)
    end
    redis.call('ZREMRANGEBYSCORE', K.kept, '-inf', int(now_ms()))
    redis.call('ZADD', K.kept, int(now_ms() + A.keep_s * 1000), round)
    local counts = redis.call('HMGET', K.status, 'total_checked', 'total_valid', 'total_failed')
    for i, name in ipairs({'checked', 'valid', 'failed'}) do
      for_viewers('HINCRBY', K.totals, name, int(number(counts[i])))
    end
    for_viewers('HINCRBY', K.totals, 'rounds', 1)
  end
  for _, name in ipairs({'round', 'nonces', 'found', 'run', 'history', 'claims', 'leases', 'tickets'}) do
    K[name] = K['new_' .. name]
  end
  round, state = A.new_round, 'IDLE'
  local now = now_ms()
  redis.call('DEL', K.status)
  put(unpack(A.fields))
  put('round_id', round, 'state', state, 'started_at', seconds(now))
  redis.call('HSET', K.run, 'config', A.config, 'epoch', A.epoch, 'cursor', '0',
    'positions', A.positions or '0',
    'elapsed_ms', '0', 'elapsed_since', int(now), 'generating_ms', '0', 'generating_since', '0')
  refresh()
  publish('work')
end

-- Commands are remembered by id: the same id again gives the same answer and changes nothing.
-- An answer names its verb: who has sent another one under that id sees that it is not his.
local function remembered() return redis.call('GET', K.command) end

local function answer(reply)
  reply.verb = A.verb
  local json = cjson.encode(reply)
  redis.call('SET', K.command, json, 'EX', A.memory_s)
  return json
end

local function answer_status() return answer({status = hash(K.status)}) end

-- The refusal of a command that names another round than the current one, or that has none.
local function not_current()
  if round == '' then
    return {error = 'RoundNotInitialized', message = 'Round not initialized'}
  end
  if A.round_id and A.round_id ~= round then
    return {error = 'RoundMismatch', message = 'Round ' .. A.round_id .. ' is not the current one, which is ' .. round}
  end
end
