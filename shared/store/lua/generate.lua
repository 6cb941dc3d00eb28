-- Start or resume generation; A.command becomes a ticket that the round's end will end.
local told = remembered() or moved()
if told then return told end
local refusal
if A.config then refusal = open_round() else refusal = not_current() end
if refusal then return answer(refusal) end
redis.call('SADD', K.tickets, A.command)
if state ~= 'GENERATING' then enter('GENERATING') end
return answer_status()
