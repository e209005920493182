-- Writes a job's record and adds it to the job's events, if the job's fencing token is still the expected one. A job that
-- ends expires together with its idempotency key, or goes when so many others have ended after it.
--
-- KEYS  1 the job
--       2 the job's events
--       3 bergson:jobs:taken
--       4 bergson:building
--       5 bergson:jobs:lanes
--       6 bergson:jobs:ended
--       7 bergson:jobs:created
-- ARGV  1 expected token
--       2 new token
--       3 record: the `JobRecord` as JSON
--       4 what happens to the job: 'keep' nothing, 'back' another worker may take it at once, 'end' it leaves the queue
--       5 index name, or ''
--       6 job_id
--       7 seconds for which an ended job is kept
--       8 number of events to keep, about
--       9 prefix of the keys of lanes
--      10 number of ended jobs to keep
--      11 prefix of the keys of jobs
--      12 suffix of the keys of events
-- Returns -1 if the token is another one, else 1 if somebody has asked to cancel the job, else 0
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return -1 end
-- The message goes first, since a full Redis refuses the first write of a script if that may need memory, and no other:
-- jobs can end, and so make room.
if ARGV[4] == 'end' then redis.call('HDEL', KEYS[1], 'message') end
redis.call('HSET', KEYS[1], 'token', ARGV[2], 'record', ARGV[3])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[8], '*', 'record', ARGV[3])
if ARGV[4] == 'back' then redis.call('ZADD', KEYS[3], 0, ARGV[6]) end
if ARGV[4] == 'end' then
  if redis.call('ZREM', KEYS[3], ARGV[6]) == 0 then
    -- No worker had the job, so it waits in its lane.
    local lane = redis.call('HGET', KEYS[1], 'lane') or ''
    redis.call('LREM', ARGV[9] .. lane, 1, ARGV[6])
    if redis.call('EXISTS', ARGV[9] .. lane) == 0 then redis.call('LREM', KEYS[5], 1, lane) end
  end
  if redis.call('HGET', KEYS[4], ARGV[5]) == ARGV[6] then redis.call('HDEL', KEYS[4], ARGV[5]) end
  redis.call('EXPIRE', KEYS[1], ARGV[7])
  redis.call('EXPIRE', KEYS[2], ARGV[7])
  local idempotency = redis.call('HGET', KEYS[1], 'idempotency')
  if idempotency then redis.call('EXPIRE', idempotency, ARGV[7]) end

  redis.call('RPUSH', KEYS[6], ARGV[6])
  while redis.call('LLEN', KEYS[6]) > tonumber(ARGV[10]) do
    local id = redis.call('LPOP', KEYS[6])
    local job = ARGV[11] .. id
    local remembered = redis.pcall('HGET', job, 'idempotency')
    if type(remembered) == 'string' then redis.call('DEL', remembered) end
    redis.call('DEL', job, job .. ARGV[12])
    redis.call('ZREM', KEYS[7], id)
  end
end
return redis.call('HEXISTS', KEYS[1], 'cancel')
