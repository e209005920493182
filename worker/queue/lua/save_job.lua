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
--       5 job_id
--       6 seconds for which an ended job is kept
--       7 number of events to keep, about
--       8 prefix of the keys of lanes
--       9 number of ended jobs to keep
--      10 prefix of the keys of jobs
--      11 suffix of the keys of events
-- Returns -1 if the token is another one, else 1 if somebody has asked to cancel the job, else 0
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return -1 end
-- The message goes first, since a full Redis refuses the first write of a script if that may need memory, and no other:
-- jobs can end, and so make room.
if ARGV[4] == 'end' then redis.call('HDEL', KEYS[1], 'message') end
redis.call('HSET', KEYS[1], 'token', ARGV[2], 'record', ARGV[3])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], '*', 'record', ARGV[3])
if ARGV[4] == 'back' then redis.call('ZADD', KEYS[3], 0, ARGV[5]) end
if ARGV[4] == 'end' then
  if redis.call('ZREM', KEYS[3], ARGV[5]) == 0 then
    -- No worker had the job, so it waits in its lane.
    local lane = redis.call('HGET', KEYS[1], 'lane') or ''
    redis.call('LREM', ARGV[8] .. lane, 1, ARGV[5])
    if redis.call('EXISTS', ARGV[8] .. lane) == 0 then redis.call('LREM', KEYS[5], 1, lane) end
  end
  local building = redis.call('HGETALL', KEYS[4])  -- the record may name another index than the job was submitted for
  for i = 1, #building, 2 do
    if building[i + 1] == ARGV[5] then redis.call('HDEL', KEYS[4], building[i]) end
  end
  redis.call('EXPIRE', KEYS[1], ARGV[6])
  redis.call('EXPIRE', KEYS[2], ARGV[6])
  local idempotency = redis.call('HGET', KEYS[1], 'idempotency')
  if idempotency then redis.call('EXPIRE', idempotency, ARGV[6]) end

  redis.call('RPUSH', KEYS[6], ARGV[5])
  while redis.call('LLEN', KEYS[6]) > tonumber(ARGV[9]) do
    local id = redis.call('LPOP', KEYS[6])
    local job = ARGV[10] .. id
    local remembered = redis.pcall('HGET', job, 'idempotency')
    if type(remembered) == 'string' then redis.call('DEL', remembered) end
    redis.call('DEL', job, job .. ARGV[11])
    redis.call('ZREM', KEYS[7], id)
  end
end
return redis.call('HEXISTS', KEYS[1], 'cancel')
