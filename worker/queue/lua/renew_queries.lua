-- Starts the leases of queries anew. A query that has been answered in the meantime stays off the queue.
--
-- KEYS  1 bergson:queries:taken
-- ARGV  1 lease in ms
--       2 and so on: query_id
local clock = redis.call('TIME')
local ends = clock[1] * 1000 + math.floor(clock[2] / 1000) + ARGV[1]
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', ends, ARGV[i]) end
