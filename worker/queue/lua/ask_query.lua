-- Adds a query to the queue, unless the queue is too long or too slow.
--
-- A full queue makes room for a query whose turn comes before that of the last one: the last one is refused instead. So
-- a lane that has filled the queue does not shut out the others (longest queue drop, Suter et al. 1999).
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
--       7 prefix of the keys of queries
-- ARGV  1 most queries that may wait or be worked on
--       2 longest time in ms that the oldest waiting query of this priority may have waited
--       3 query_id
--       4 message: the `Query` as JSON
--       5 lane
--       6 seconds after which the query expires
--       7 prefix of the keys of replies
--       8 most replies that wait for a web process
--       9 seconds for which replies are kept
--      10 code of the problem of a query that is refused to make room
--      11 detail of that problem
-- Returns 'asked', 'full' (too many queries) or 'slow' (the oldest one has waited too long)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local waiting = redis.call('ZCARD', KEYS[1])

-- Turns only have to be compared among waiting queries: with none waiting, every lane starts anew.
local lane, started, previous = 'lane:' .. ARGV[5], 0, 0
if waiting > 0 then
  started = tonumber(redis.call('HGET', KEYS[3], 'started') or 0)
  previous = tonumber(redis.call('HGET', KEYS[3], lane) or 0)
end
local turn = math.max(started, previous + 1)

-- The oldest query says how long those after it will wait, and nothing of those that go before it.
local oldest = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if oldest[2] and now - tonumber(oldest[2]) > tonumber(ARGV[2]) then
  local rank = redis.call('ZREVRANK', KEYS[1], oldest[1])  -- the user in Redis may have no right to ZSCORE
  if not rank or turn >= tonumber(redis.call('ZREVRANGE', KEYS[1], rank, rank, 'WITHSCORES')[2]) then return 'slow' end
end

-- Returns whether the query whose turn is the last, if it is after this one's, has been refused.
local function make_room()
  local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
  if not last[2] or tonumber(last[2]) <= turn then return false end
  local key = KEYS[7] .. last[1]
  local message = redis.pcall('HGET', key, 'message')
  redis.call('ZREM', KEYS[1], last[1])
  redis.call('ZREM', KEYS[2], last[1])
  redis.call('DEL', key)
  local readable, query = pcall(cjson.decode, message)
  local reply_to = readable and type(query) == 'table' and query.reply_to
  if type(reply_to) == 'string' and string.sub(reply_to, 1, #ARGV[7]) == ARGV[7] then
    local reply = {query_id = last[1], problem = {code = ARGV[10], detail = ARGV[11]}}
    redis.call('XADD', reply_to, 'MAXLEN', '~', ARGV[8], '*', 'reply', cjson.encode(reply))
    redis.call('EXPIRE', reply_to, ARGV[9])
  end
  return true
end
if waiting + redis.call('ZCARD', KEYS[4]) >= tonumber(ARGV[1]) and not make_room() then return 'full' end

if waiting == 0 then redis.call('DEL', KEYS[3]) end
redis.call('HSET', KEYS[3], lane, turn)
redis.call('ZADD', KEYS[1], turn, ARGV[3])
redis.call('ZADD', KEYS[2], now, ARGV[3])

redis.call('HSET', KEYS[6], 'message', ARGV[4])
redis.call('EXPIRE', KEYS[6], ARGV[6])

-- Rings the bell. More than 64 entries would not wake more workers.
redis.call('RPUSH', KEYS[5], 1)
redis.call('LTRIM', KEYS[5], -64, -1)
return 'asked'
