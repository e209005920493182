-- Starts a job's lease anew, if the job's fencing token is still the expected one.
--
-- KEYS  1 the job
--       2 bergson:jobs:taken
-- ARGV  1 expected token
--       2 lease in ms
--       3 job_id
-- Returns 1, or 0 if the token is another one
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
-- A full Redis refuses the first write of a script if that may need memory, and no other.
redis.call('ZREM', KEYS[2], ARGV[3])
local clock = redis.call('TIME')
redis.call('ZADD', KEYS[2], clock[1] * 1000 + math.floor(clock[2] / 1000) + ARGV[2], ARGV[3])
return 1
