-- Takes queries whose leases have ended, or else the next waiting queries, all of one priority.
--
-- A lease that ends later than one that starts now was started before the clock of Redis stepped back. It starts anew.
--
-- An id without a readable query is removed from the queue: an error here would hold up every query behind it.
--
-- KEYS  1 bergson:queries:taken
--       2 bergson:queries:bell
--       3, 4, 5 and so on for each priority, the most urgent first:
--         waiting queries by turn, waiting queries by arrival, turns
-- ARGV  1 largest number of queries
--       2 lease in ms
--       3 prefix of the keys of queries
--       4 largest size in bytes of a message
-- Returns a flat list of query_id, message and deliveries for each query; the message is '' if it is too large
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local found = {}

local function take(id)
  local key = ARGV[3] .. id
  local size = redis.pcall('HSTRLEN', key, 'message')
  if type(size) ~= 'number' or size == 0 then
    redis.call('DEL', key)
    return redis.call('ZREM', KEYS[1], id)
  end
  local message = size <= tonumber(ARGV[4]) and redis.call('HGET', key, 'message') or ''
  redis.call('ZADD', KEYS[1], now + ARGV[2], id)
  local deliveries = redis.pcall('HINCRBY', key, 'deliveries', 1)
  if type(deliveries) ~= 'number' then deliveries = 1000 end  -- what cannot be counted is too many
  for _, value in ipairs({id, message, deliveries}) do found[#found + 1] = value end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now + ARGV[2], '+inf')) do
  -- A full Redis refuses the first write of a script if that may need memory, and no other.
  redis.call('ZREM', KEYS[1], id)
  redis.call('ZADD', KEYS[1], now + ARGV[2], id)
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do take(id) end

for first = 3, #KEYS, 3 do
  while #found == 0 do
    local next = redis.call('ZRANGE', KEYS[first], 0, ARGV[1] - 1, 'WITHSCORES')
    if #next == 0 then break end
    for i = 1, #next, 2 do
      redis.call('ZREM', KEYS[first], next[i])
      redis.call('ZREM', KEYS[first + 1], next[i])
      redis.call('HSET', KEYS[first + 2], 'started', next[i + 1])
      take(next[i])
    end
  end
end

-- Nothing waits: entries of queries that others took must not wake a worker again. The next query rings the bell.
if #found == 0 then redis.call('DEL', KEYS[2]) end
return found
