-- Takes a job whose lease has ended, or else the first job of the lane that has the next turn. That lane goes to the
-- end of the list of lanes, if more of its jobs wait.
--
-- A lease that ends later than one that starts now was started before the clock of Redis stepped back. It starts anew.
--
-- KEYS  1 bergson:jobs:taken
--       2 bergson:jobs:lanes
-- ARGV  1 lease in ms
--       2 prefix of the keys of lanes
-- Returns job_id, or nil if there is no job
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
for _, future in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now + ARGV[1], '+inf')) do
  -- A full Redis refuses the first write of a script if that may need memory, and no other.
  redis.call('ZREM', KEYS[1], future)
  redis.call('ZADD', KEYS[1], now + ARGV[1], future)
end

local id = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1)[1]
while not id do
  local lane = redis.call('LPOP', KEYS[2])
  if not lane then return false end
  id = redis.call('LPOP', ARGV[2] .. lane)
  if redis.call('EXISTS', ARGV[2] .. lane) == 1 then redis.call('RPUSH', KEYS[2], lane) end
end
redis.call('ZADD', KEYS[1], now + ARGV[1], id)
return id
