-- Adds a query to the queue, unless the queue is too long or too slow.
--
-- A query's turn is the time at which it would start if every query took one unit of time: after the query that was
-- taken last, and one unit after the previous query of its lane (start-time fair queueing, see query_queue.py).
--
-- KEYS  1 waiting queries of this priority by turn
--       2 waiting queries of this priority by arrival
--       3 turns of this priority
--       4 bergson:queries:taken
--       5 bergson:queries:bell
--       6 the query
-- ARGV  1 most queries that may wait or be worked on
--       2 longest time in ms that the oldest waiting query of this priority may have waited
--       3 query_id
--       4 message: the `Query` as JSON
--       5 lane
--       6 seconds after which the query expires
-- Returns 'asked', 'full' (too many queries) or 'slow' (the oldest one has waited too long)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local waiting = redis.call('ZCARD', KEYS[1])
if waiting + redis.call('ZCARD', KEYS[4]) >= tonumber(ARGV[1]) then return 'full' end
local oldest = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if oldest[2] and now - tonumber(oldest[2]) > tonumber(ARGV[2]) then return 'slow' end

-- Turns only have to be compared among waiting queries: with none waiting, every lane starts anew.
if waiting == 0 then redis.call('DEL', KEYS[3]) end
local lane = 'lane:' .. ARGV[5]
local started = tonumber(redis.call('HGET', KEYS[3], 'started') or 0)
local turn = math.max(started, tonumber(redis.call('HGET', KEYS[3], lane) or 0) + 1)
redis.call('HSET', KEYS[3], lane, turn)
redis.call('ZADD', KEYS[1], turn, ARGV[3])
redis.call('ZADD', KEYS[2], now, ARGV[3])

redis.call('HSET', KEYS[6], 'message', ARGV[4])
redis.call('EXPIRE', KEYS[6], ARGV[6])

-- Rings the bell. More than 64 entries would not wake more workers.
redis.call('RPUSH', KEYS[5], 1)
redis.call('LTRIM', KEYS[5], -64, -1)
return 'asked'
