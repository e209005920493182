"""The Lua that runs inside Redis: the steps that must happen together or not at all.

Every change of a job is made by its fencing token: whoever holds an older token than the job's changes nothing.
"""

SUBMIT = """
-- Creates a job, reserves its index's name, and remembers the idempotency key, if there are such.
-- KEYS idempotency, building, job, events, jobs, created
-- ARGV index or '', job_id, body_sha256, message, record, created_at, name_taken, idempotency_ttl_s or ''
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
local entry = redis.call('XADD', KEYS[5], '*', 'job_id', ARGV[2])
redis.call('HSET', KEYS[3], 'message', ARGV[4], 'record', ARGV[5], 'token', '0', 'entry', entry)
redis.call('XADD', KEYS[4], '*', 'record', ARGV[5])
redis.call('ZADD', KEYS[6], ARGV[6], ARGV[2])
if remember then
  redis.call('HSET', KEYS[1], 'job_id', ARGV[2], 'body', ARGV[3])
  redis.call('EXPIRE', KEYS[1], ARGV[8])
end
return {'created', ARGV[2]}
"""

SAVE = """
-- Writes a job's record and announces it, if the job's token is still the expected one.
-- KEYS job, events, jobs, building
-- ARGV expected_token, new_token, record, what, group, consumer, index, job_id, keep_s, max_events
--   what: 'keep'; 'end' takes the job off the queue; 'back' lets another worker take it at once
-- Returns -1 where the token is another one; otherwise whether somebody wants the job cancelled, 0 or 1
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return -1 end
redis.call('HSET', KEYS[1], 'token', ARGV[2], 'record', ARGV[3])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[10], '*', 'record', ARGV[3])
local entry = redis.call('HGET', KEYS[1], 'entry')
if ARGV[4] == 'back' then
  redis.call('XCLAIM', KEYS[3], ARGV[5], ARGV[6], 0, entry, 'IDLE', 86400000, 'JUSTID')
end
if ARGV[4] == 'end' then
  redis.call('XACK', KEYS[3], ARGV[5], entry)
  redis.call('XDEL', KEYS[3], entry)
  redis.call('HDEL', KEYS[1], 'message')
  if redis.call('HGET', KEYS[4], ARGV[7]) == ARGV[8] then redis.call('HDEL', KEYS[4], ARGV[7]) end
  redis.call('EXPIRE', KEYS[1], ARGV[9])
  redis.call('EXPIRE', KEYS[2], ARGV[9])
end
return redis.call('HEXISTS', KEYS[1], 'cancel')
"""

RENEW = """
-- Starts a job's lease anew, if the job's token is still the expected one. Returns 1, or 0 where it is not.
-- KEYS job, jobs
-- ARGV expected_token, group, consumer
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('XCLAIM', KEYS[2], ARGV[2], ARGV[3], 0, redis.call('HGET', KEYS[1], 'entry'), 'JUSTID')
return 1
"""

ASK = """
-- Adds a query unless too many are there. Returns the entry, or nil where the queue is full.
-- KEYS queries
-- ARGV max_queued, message
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return false end
return redis.call('XADD', KEYS[1], '*', 'message', ARGV[2])
"""
