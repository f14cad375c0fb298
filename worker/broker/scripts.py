"""The Lua scripts: what must happen in Redis at once. For Redis 6.2 and later, and Valkey."""

from __future__ import annotations

from typing import Final

#: Bells kept for a queue. Each wakes one idle worker; a worker that wakes for nothing sleeps again.
BELLS: Final = 64

#: KEYS: list, bell. ARGV: the doorbells, first to be popped first.
RING: Final = f"""
redis.call('LPUSH', KEYS[1], unpack(ARGV))
local room = math.min(#ARGV, {BELLS} - redis.call('LLEN', KEYS[2]))
for _ = 1, room do redis.call('LPUSH', KEYS[2], '1') end
return #ARGV
"""

#: KEYS: lists, first to be served first, then the unacked hash, its index and a counter.
#: ARGV: how many, a unique word. Returns list, entry, tag, flat. An entry that is no doorbell of
#: ours is noted as unacked in the same step, or it would be lost with the reply. The counter tells
#: two runs with one word apart: a client that lost the reply sends the same call again. A key that
#: is no list is passed over: an error here would lose what was popped from the lists before it.
POP: Final = """
local most = tonumber(ARGV[1])
local lists = #KEYS - 3
local run
local out = {}
local now = redis.call('TIME')
local score = now[1] + now[2] / 1000000
for i = 1, lists do
    if most <= 0 then break end
    local entries = redis.pcall('RPOP', KEYS[i], most)
    if entries and entries.err then
        if not string.find(entries.err, 'WRONGTYPE', 1, true) then return entries end
        entries = nil
    end
    if entries then
        for _, entry in ipairs(entries) do
            local tag = ''
            if string.sub(entry, 1, 11) ~= '{"ledger": ' then
                run = run or redis.call('INCR', KEYS[lists + 3])
                tag = ARGV[2] .. ':' .. run .. ':' .. #out
                redis.call('HSET', KEYS[lists + 1], tag, KEYS[i] .. '\\n' .. entry)
                redis.call('ZADD', KEYS[lists + 2], score, tag)
            end
            out[#out + 1] = KEYS[i]
            out[#out + 1] = entry
            out[#out + 1] = tag
        end
        most = most - #entries
    end
end
return out
"""

#: KEYS: kombu's unacked hash and its index. ARGV: age in seconds, how many. Returns tag, what is
#: noted, flat: the first popped last, because each is put back before the one that was put there.
STOCK_OLD: Final = """
local now = redis.call('TIME')
local limit = now[1] + now[2] / 1000000 - tonumber(ARGV[1])
local tags = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', limit, 'LIMIT', 0, tonumber(ARGV[2]))
local out = {}
for i = #tags, 1, -1 do
    out[#out + 1] = tags[i]
    out[#out + 1] = redis.call('HGET', KEYS[1], tags[i])
end
return out
"""

#: KEYS: as above. ARGV: age in seconds, a tag, then list and entry as often as there are lists.
#: Nothing if the entry is gone, or is younger now: somebody has put it back, and it was popped
#: again. The pushes come first: one that Redis refuses must not lose what is noted.
STOCK_BACK: Final = """
local now = redis.call('TIME')
local limit = now[1] + now[2] / 1000000 - tonumber(ARGV[1])
local score = redis.call('ZSCORE', KEYS[2], ARGV[2])
if not score or tonumber(score) > limit then return 0 end
for i = 3, #ARGV, 2 do redis.call('RPUSH', ARGV[i], ARGV[i + 1]) end
redis.call('HDEL', KEYS[1], ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[2])
return 1
"""

#: KEYS: the unacked hash and its index. ARGV: age in seconds, how many. By Redis's own clock:
#: a worker's clock an hour ahead would put back everybody's entries. An entry whose list Redis
#: refuses stays noted, and keeps no other from being put back; a note that names no list, which
#: nothing of ours writes, is dropped.
RESTORE: Final = """
local now = redis.call('TIME')
local limit = now[1] + now[2] / 1000000 - tonumber(ARGV[1])
local tags = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', limit, 'LIMIT', 0, tonumber(ARGV[2]))
local restored = 0
for _, tag in ipairs(tags) do
    local noted = redis.call('HGET', KEYS[1], tag)
    local at = noted and string.find(noted, '\\n', 1, true)
    local pushed
    if at then
        pushed = redis.pcall('RPUSH', string.sub(noted, 1, at - 1), string.sub(noted, at + 1))
    end
    if type(pushed) ~= 'table' then
        redis.call('HDEL', KEYS[1], tag)
        redis.call('ZREM', KEYS[2], tag)
        restored = restored + 1
    end
end
return restored
"""
