-- Open a new round.
local told = remembered() or moved()
if told then return told end
local refusal = open_round()
if refusal then return answer(refusal) end
return answer_status()
