-- Starts the leases of queries anew. A query that has been answered in the meantime stays off the queue.
--
-- KEYS  1 bergson:queries:taken
-- ARGV  1 lease in ms
--       2 and so on: query_id
local clock = redis.call('TIME')
local ends = clock[1] * 1000 + math.floor(clock[2] / 1000) + ARGV[1]
-- A full Redis refuses the first write of a script if that may need memory, and no other: hence ZREM and not ZADD XX.
for i = 2, #ARGV do
  if redis.call('ZREM', KEYS[1], ARGV[i]) == 1 then redis.call('ZADD', KEYS[1], ends, ARGV[i]) end
end
