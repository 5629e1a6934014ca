"""The store in Redis: two scripts, which Redis runs as a whole and by its own clock."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from guard.replicas.store import (
    BREAKER_LIFE_S,
    REPLICA_LIFE_S,
    SLOTS_LIFE_S,
    BreakerReport,
    BreakerState,
    Claim,
    Standing,
    StoreUnavailable,
)

_CLOCK = """
local t = redis.call('TIME')
local now = t[1] + t[2] / 1000000
"""

# KEYS: replicas, then a bucket and the slots of each level.
# ARGV: this replica, its life, the life of slots, then nine numbers for each level; -1 is no limit.
_EXCHANGE = (
    _CLOCK
    + """
local me, life, slots_life = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
redis.call('ZADD', KEYS[1], now + life, me)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('PEXPIRE', KEYS[1], 10000 * life)
local alive = redis.call('ZCARD', KEYS[1])
local answer = {}
for level = 0, (#KEYS - 1) / 2 - 1 do
  local function given(i) return tonumber(ARGV[3 + 9 * level + i]) end
  local bucket, slots = KEYS[2 + 2 * level], KEYS[3 + 2 * level]
  local rate, back, needed, wanted = given(1), given(2), given(3), given(4)
  local token_rate, spent = given(5), given(6)
  local concurrent, slots_needed, slots_wanted = given(7), given(8), given(9)
  local granted, left, tokens, held, free = 0, 0, 0, 0, 0
  if rate >= 0 or token_rate >= 0 then
    local had = redis.call('HMGET', bucket, 'requests', 'tokens', 'at')
    local passed = math.max(0, now - (tonumber(had[3]) or now))
    local until_full = 0
    if rate >= 0 then
      left = math.min(rate, (tonumber(had[1]) or rate) + passed * rate / 60 + back)
      local room = math.floor(left + 1e-9)
      local share = math.floor(room / (2 * alive))
      granted = math.max(0, math.min(room, math.max(needed, math.min(wanted, share))))
      left = left - granted
      until_full = (rate - left) * 60 / rate
      redis.call('HSET', bucket, 'requests', tostring(left))
    else
      redis.call('HDEL', bucket, 'requests')
    end
    if token_rate >= 0 then
      tokens = math.min(token_rate, (tonumber(had[2]) or token_rate) + passed * token_rate / 60)
      tokens = tokens - spent
      until_full = math.max(until_full, (token_rate - tokens) * 60 / token_rate)
      redis.call('HSET', bucket, 'tokens', tostring(tokens))
    else
      redis.call('HDEL', bucket, 'tokens')
    end
    redis.call('HSET', bucket, 'at', string.format('%.6f', now))
    redis.call('PEXPIRE', bucket, math.ceil(1000 * math.min(until_full + 60, 86400)))
  end
  if concurrent >= 0 then
    local others, all = 0, redis.call('HGETALL', slots)
    for i = 1, #all, 2 do
      if all[i] ~= me then
        if redis.call('ZSCORE', KEYS[1], all[i]) then
          others = others + tonumber(all[i + 1])
        else
          redis.call('HDEL', slots, all[i])
        end
      end
    end
    local room = math.max(0, concurrent - others)
    local spare = math.floor(math.max(0, room - slots_needed) / (2 * alive))
    held = math.min(room, math.max(slots_needed, math.min(slots_wanted, slots_needed + spare)))
    free = room - held
    redis.call('HSET', slots, me, held)
    redis.call('PEXPIRE', slots, 1000 * slots_life)
  end
  answer[level + 1] = {tostring(left), granted, tostring(tokens), held, free}
end
return answer
"""
)

# KEYS: one for each upstream. ARGV: the life of a record, then six numbers for each.
_BREAKERS = (
    _CLOCK
    + """
local answer = {}
for i, key in ipairs(KEYS) do
  local function given(n) return tonumber(ARGV[1 + 6 * (i - 1) + n]) end
  local threshold, cooldown = given(1), given(2)
  local answered, succeeded, failed, opened = given(3), given(4), given(5), given(6)
  local had = redis.call('HMGET', key, 'failures', 'until')
  local failures, open_until = tonumber(had[1]) or 0, tonumber(had[2])
  if answered == 1 then open_until = nil end
  if succeeded == 1 then failures, open_until = 0, nil end
  failures = failures + failed
  if opened == 1 or (failed > 0 and failures >= threshold) then open_until = now + cooldown end
  if answered + succeeded + failed + opened > 0 then
    redis.call('DEL', key)
    redis.call('HSET', key, 'failures', failures)
    if open_until then redis.call('HSET', key, 'until', string.format('%.6f', open_until)) end
    redis.call('PEXPIRE', key, math.ceil(1000 * (tonumber(ARGV[1]) + cooldown)))
  end
  local is_open, wait = 0, 0
  if open_until then is_open, wait = 1, math.max(0, open_until - now) end
  answer[i] = {failures, is_open, tostring(wait)}
end
return answer
"""
)


class RedisStore:
    """The store at a `redis://` or `rediss://` URL, for servers that call themselves `name`."""

    def __init__(self, url: str, name: str, timeout_s: float) -> None:
        """Raises ValueError where the URL is none."""
        self.replica = uuid.uuid4().hex
        # one slot of a cluster: a script's keys have to be together
        self._prefix = f"{{{name}}}:"
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # a claim that may have been counted must not be counted again: see `SharedLedger`
            retry=Retry(NoBackoff(), 0),
            max_connections=4,
        )
        self._exchange = self._client.register_script(_EXCHANGE)
        self._breakers = self._client.register_script(_BREAKERS)

    def exchange(self, claims: Sequence[Claim]) -> list[Standing]:
        keys = [f"{self._prefix}replicas"]
        numbers: list[Any] = [self.replica, REPLICA_LIFE_S, SLOTS_LIFE_S]
        for claim in claims:
            keys += [f"{self._prefix}{kind}:{claim.name}" for kind in ("limits", "running")]
            numbers += [
                *(_limit(claim.requests_per_minute), claim.returned, claim.needed, claim.wanted),
                *(_limit(claim.tokens_per_minute), claim.tokens_spent),
                *(_limit(claim.concurrent), claim.slots_needed, claim.slots_wanted),
            ]
        with _answering():
            rows = self._exchange(keys=keys, args=numbers)
        return [
            Standing(float(left), int(granted), float(tokens), int(slots), int(free))
            for left, granted, tokens, slots, free in rows
        ]

    def breakers(self, reports: Sequence[BreakerReport]) -> list[BreakerState]:
        keys = [f"{self._prefix}breaker:{report.upstream}" for report in reports]
        numbers: list[Any] = [BREAKER_LIFE_S]
        for report in reports:
            numbers += [report.threshold, report.cooldown_s]
            numbers += map(int, (report.answered, report.succeeded, report.failures, report.opened))
        with _answering():
            rows = self._breakers(keys=keys, args=numbers)
        return [
            BreakerState(int(failures), bool(is_open), float(wait))
            for failures, is_open, wait in rows
        ]

    def close(self) -> None:
        with suppress(StoreUnavailable), _answering():
            self._client.zrem(f"{self._prefix}replicas", self.replica)
        self._client.close()


def _limit(limit: int | None) -> int:
    return -1 if limit is None else limit


@contextmanager
def _answering() -> Iterator[None]:
    """Raises StoreUnavailable in place of the client's errors."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreUnavailable(f"Redis does not answer: {reason}") from error
