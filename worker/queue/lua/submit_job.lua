-- Creates a job, reserves the name of its index, and remembers the idempotency key, unless too many jobs have not ended.
-- The index and the idempotency key are optional.
--
-- What has not ended is counted anew each time, instead of in counters, which would drift with each key that is removed
-- by hand or expires.
--
-- KEYS  1 the idempotency key's hash (not touched when ARGV[8] is '')
--       2 bergson:building
--       3 the job
--       4 the job's events
--       5 bergson:jobs:created
--       6 bergson:jobs:lanes
--       7 the list of the job's lane
--       8 bergson:jobs:taken
-- ARGV  1 index name, or ''
--       2 job_id
--       3 sha256 of the request's body
--       4 message: the `Job` as JSON
--       5 record: the `JobRecord` as JSON
--       6 time of creation
--       7 '1' if the index name is taken already, by a published index
--       8 '1' if there is an idempotency key, or ''
--       9 lane
--      10 prefix of the keys of lanes
--      11 prefix of the keys of jobs
--      12 most jobs in all
--      13 most bytes of messages in all
--      14 most jobs in a lane
--      15 most bytes of messages in a lane
-- Returns {'known', job_id, body_sha256, record}
--                                          the idempotency key was used before, for this job and body
--         {'taken', job_id or ''}          the name is taken, by this job or by a published index
--         {'full', 'all' or 'lane', jobs, bytes}
--                                          with this job there would be more than may be; what is there without it
--         {'created', job_id}
local remember = ARGV[8] ~= ''
if remember then
  local known = redis.call('HMGET', KEYS[1], 'job_id', 'body')
  -- The key of a job that can no longer be asked for counts as new.
  local record = known[1] and redis.pcall('HGET', ARGV[11] .. known[1], 'record')
  if type(record) == 'string' then return {'known', known[1], known[2], record} end
end
if ARGV[7] == '1' then return {'taken', ''} end
local builder = ARGV[1] ~= '' and redis.call('HGET', KEYS[2], ARGV[1])
if builder then return {'taken', builder} end

local all, own = {jobs = 0, bytes = 0}, {jobs = 0, bytes = 0}
local function count(id, is_own)
  local bytes = redis.pcall('HSTRLEN', ARGV[11] .. id, 'message')
  if type(bytes) ~= 'number' then bytes = 0 end
  for _, sum in ipairs(is_own and {all, own} or {all}) do
    sum.jobs, sum.bytes = sum.jobs + 1, sum.bytes + bytes
  end
end
for _, lane in ipairs(redis.call('LRANGE', KEYS[6], 0, -1)) do
  for _, id in ipairs(redis.call('LRANGE', ARGV[10] .. lane, 0, -1)) do count(id, lane == ARGV[9]) end
end
for _, id in ipairs(redis.call('ZRANGE', KEYS[8], 0, -1)) do
  count(id, redis.pcall('HGET', ARGV[11] .. id, 'lane') == ARGV[9])
end
local function is_full(sum, jobs, bytes)
  return sum.jobs + 1 > tonumber(jobs) or sum.bytes + #ARGV[4] > tonumber(bytes)
end
if is_full(all, ARGV[12], ARGV[13]) then return {'full', 'all', all.jobs, all.bytes} end
if is_full(own, ARGV[14], ARGV[15]) then return {'full', 'lane', own.jobs, own.bytes} end

if ARGV[1] ~= '' then redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) end
redis.call('HSET', KEYS[3], 'message', ARGV[4], 'record', ARGV[5], 'token', '0', 'lane', ARGV[9])
redis.call('XADD', KEYS[4], '*', 'record', ARGV[5])
redis.call('ZADD', KEYS[5], ARGV[6], ARGV[2])

-- A lane is in the list of lanes exactly while jobs of it wait.
if redis.call('RPUSH', KEYS[7], ARGV[2]) == 1 then redis.call('RPUSH', KEYS[6], ARGV[9]) end

-- The key expires together with the job, once that has ended: see save_job.lua.
if remember then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'job_id', ARGV[2], 'body', ARGV[3])
  redis.call('HSET', KEYS[3], 'idempotency', KEYS[1])
end
return {'created', ARGV[2]}
