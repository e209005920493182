"""The Lua that runs inside Redis: the steps that must happen together or not at all.

Every change of a job is made by its fencing token: whoever holds an older token than the job's changes nothing.
"""

SUBMIT_JOB = """
-- Creates a job, reserves its index's name, and remembers the idempotency key, if there are such.
-- KEYS idempotency, building, job, events, created, lanes, its lane
-- ARGV index or '', job_id, body_sha256, message, record, created_at, name_taken, idempotency_ttl_s or '', lane
-- Returns {'known', job_id, body_sha256} | {'taken', job_id or ''} | {'created', job_id}
local remember = ARGV[8] ~= ''
if remember and redis.call('EXISTS', KEYS[1]) == 1 then
  local known = redis.call('HMGET', KEYS[1], 'job_id', 'body')
  return {'known', known[1], known[2]}
end
if ARGV[7] == '1' then return {'taken', ''} end
if ARGV[1] ~= '' and redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[2]) == 0 then
  return {'taken', redis.call('HGET', KEYS[2], ARGV[1])}
end
redis.call('HSET', KEYS[3], 'message', ARGV[4], 'record', ARGV[5], 'token', '0', 'lane', ARGV[9])
redis.call('XADD', KEYS[4], '*', 'record', ARGV[5])
redis.call('ZADD', KEYS[5], ARGV[6], ARGV[2])
if redis.call('RPUSH', KEYS[7], ARGV[2]) == 1 then redis.call('RPUSH', KEYS[6], ARGV[9]) end
if remember then
  redis.call('HSET', KEYS[1], 'job_id', ARGV[2], 'body', ARGV[3])
  redis.call('EXPIRE', KEYS[1], ARGV[8])
end
return {'created', ARGV[2]}
"""

SAVE_JOB = """
-- Writes a job's record and announces it, if the job's token is still the expected one.
-- KEYS job, events, taken, building, lanes
-- ARGV expected_token, new_token, record, what, index, job_id, keep_s, max_events, prefix of the lanes' keys
--   what: 'keep'; 'end' takes the job off the queue; 'back' lets another worker take it at once
-- Returns -1 where the token is another one; otherwise whether somebody wants the job cancelled, 0 or 1
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return -1 end
redis.call('HSET', KEYS[1], 'token', ARGV[2], 'record', ARGV[3])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[8], '*', 'record', ARGV[3])
if ARGV[4] == 'back' then redis.call('ZADD', KEYS[3], 0, ARGV[6]) end
if ARGV[4] == 'end' then
  if redis.call('ZREM', KEYS[3], ARGV[6]) == 0 then
    local lane = redis.call('HGET', KEYS[1], 'lane') or ''
    redis.call('LREM', ARGV[9] .. lane, 1, ARGV[6])
    if redis.call('EXISTS', ARGV[9] .. lane) == 0 then redis.call('LREM', KEYS[5], 1, lane) end
  end
  redis.call('HDEL', KEYS[1], 'message')
  if redis.call('HGET', KEYS[4], ARGV[5]) == ARGV[6] then redis.call('HDEL', KEYS[4], ARGV[5]) end
  redis.call('EXPIRE', KEYS[1], ARGV[7])
  redis.call('EXPIRE', KEYS[2], ARGV[7])
end
return redis.call('HEXISTS', KEYS[1], 'cancel')
"""

RENEW_JOB = """
-- Starts a job's lease anew, if the job's token is still the expected one. Returns 1, or 0 where it is not.
-- KEYS job, taken
-- ARGV expected_token, lease_ms, job_id
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
local clock = redis.call('TIME')
redis.call('ZADD', KEYS[2], clock[1] * 1000 + math.floor(clock[2] / 1000) + ARGV[2], ARGV[3])
return 1
"""

TAKE_JOB = """
-- Takes a job whose lease has ended, or else the first of the lane whose turn it is, which then is last in line.
-- KEYS taken, lanes
-- ARGV lease_ms, prefix of the lanes' keys
-- Returns job_id, or nothing where there is none
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local id = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1)[1]
while not id do
  local lane = redis.call('LPOP', KEYS[2])
  if not lane then return false end
  id = redis.call('LPOP', ARGV[2] .. lane)
  if redis.call('EXISTS', ARGV[2] .. lane) == 1 then redis.call('RPUSH', KEYS[2], lane) end
end
redis.call('ZADD', KEYS[1], now + ARGV[1], id)
return id
"""

ASK_QUERY = """
-- Adds a query, unless too many are there or those of its priority wait too long. Returns 'asked', 'full' or 'slow'.
-- KEYS waiting, since, turns, taken, bell, query; the first three are those of its priority
-- ARGV most_queries, longest_wait_ms, query_id, message, lane, ttl_s
-- A turn is the time at which a query would start if each took as long: after what is worked on, and after its lane's.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local waiting = redis.call('ZCARD', KEYS[1])
if waiting + redis.call('ZCARD', KEYS[4]) >= tonumber(ARGV[1]) then return 'full' end
local oldest = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if oldest[2] and now - tonumber(oldest[2]) > tonumber(ARGV[2]) then return 'slow' end
if waiting == 0 then redis.call('DEL', KEYS[3]) end
local lane = 'lane:' .. ARGV[5]
local started = tonumber(redis.call('HGET', KEYS[3], 'started') or 0)
local turn = math.max(started, tonumber(redis.call('HGET', KEYS[3], lane) or 0) + 1)
redis.call('HSET', KEYS[3], lane, turn)
redis.call('ZADD', KEYS[1], turn, ARGV[3])
redis.call('ZADD', KEYS[2], now, ARGV[3])
redis.call('HSET', KEYS[6], 'message', ARGV[4])
redis.call('EXPIRE', KEYS[6], ARGV[6])
redis.call('RPUSH', KEYS[5], 1)
redis.call('LTRIM', KEYS[5], -64, -1)
return 'asked'
"""

TAKE_QUERIES = """
-- Takes queries whose lease has ended, or else the next ones, all of one priority.
-- KEYS taken, bell, then for each priority, the most urgent first: waiting, since, turns
-- ARGV count, lease_ms, prefix of the queries' keys, most_bytes
-- Returns query_id, message, deliveries of each; '' for a message of more bytes. Where nothing waits the bell is
-- hushed: what comes next rings it. What is no query is removed: an error here would hold up all that come after.
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
  for _, value in ipairs({id, message, redis.call('HINCRBY', key, 'deliveries', 1)}) do found[#found + 1] = value end
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
if #found == 0 then redis.call('DEL', KEYS[2]) end
return found
"""

RENEW_QUERIES = """
-- Starts the leases of queries anew, of those that are still taken.
-- KEYS taken
-- ARGV lease_ms, query_id...
local clock = redis.call('TIME')
local ends = clock[1] * 1000 + math.floor(clock[2] / 1000) + ARGV[1]
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', ends, ARGV[i]) end
"""
