-- End generation; the round is then validating.
local told = remembered() or moved()
if told then return told end
local refusal
if A.config then refusal = open_round() else refusal = not_current() end
if refusal then return answer(refusal) end
leave_for('VALIDATING')
return answer_status()
