-- Creates a job, reserves the name of its index, and remembers the idempotency key. The index and the idempotency key
-- are optional.
--
-- KEYS  1 the idempotency key's hash (not touched when ARGV[8] is '')
--       2 bergson:building
--       3 the job
--       4 the job's events
--       5 bergson:jobs:created
--       6 bergson:jobs:lanes
--       7 the list of the job's lane
-- ARGV  1 index name, or ''
--       2 job_id
--       3 sha256 of the request's body
--       4 message: the `Job` as JSON
--       5 record: the `JobRecord` as JSON
--       6 time of creation
--       7 '1' if the index name is taken already, by a published index
--       8 seconds for which the idempotency key is remembered, or '' without one
--       9 lane
-- Returns {'known', job_id, body_sha256}  the idempotency key was used before, for this job and body
--         {'taken', job_id or ''}         the name is taken, by this job or by a published index
--         {'created', job_id}
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

-- A lane is in the list of lanes exactly while jobs of it wait.
if redis.call('RPUSH', KEYS[7], ARGV[2]) == 1 then redis.call('RPUSH', KEYS[6], ARGV[9]) end

if remember then
  redis.call('HSET', KEYS[1], 'job_id', ARGV[2], 'body', ARGV[3])
  redis.call('EXPIRE', KEYS[1], ARGV[8])
end
return {'created', ARGV[2]}
