-- Stop the round, at once. A stop that names a round that is not there yet leaves a tombstone,
-- so that the init or generate which it overtook is refused.
-- with _round
-- K reads: named=round(round_id)
-- K writes: status, clock, endings, outbox, gathered(round), command(command), tombstone(round_id),
--   round(round), run(round), history(round), leases(round), tickets(round)
-- A: round, command, memory_s, epoch, round_id?

local known = remembered() or moved()
if known then return known end
if A.round_id and A.round_id ~= round then
  if redis.call('EXISTS', K.named) == 1 then
    return answer({status = hash(K.named)})
  end
  redis.call('SET', K.tombstone, '1', 'EX', A.memory_s)
  return answer_status()
end
if round == '' then
  redis.call('HSET', K.status, 'state', 'STOPPED')
elseif state ~= 'STOPPED' then
  leave_for('STOPPED')
end
return answer_status()
