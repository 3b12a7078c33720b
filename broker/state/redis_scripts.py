"""What is asked of a Redis or Valkey server, as small scripts and their arguments.

Each operation is one round trip, sent whole (EVAL), as a script that is only named would be lost
with every restart, failover and SCRIPT FLUSH. A value is `{prefix:name}`, its claim
`{prefix:name}:claim`: in a cluster, what stands in braces decides where both of them are. A value
is framed as a short keyed digest of the plain text and the sealed text, so that "if it is still
this" can be decided there, where sealing twice gives two texts. Every script may be sent twice with
the same effect as once.
"""

from __future__ import annotations

from broker.state.redis_link import Command
from broker.state.store import Kept, Put
from broker.state.vault import TAG_BYTES, Vault

_READ = "return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}"
_FREE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
# ARGV: framed value, milliseconds, owner, 1 for only where there is none. Gives 0 where another has
# the claim, or has put another value; a value that was put by this very call before is not another.
_WRITE = f"""
local mine = ARGV[3] ~= '' and redis.call('GET', KEYS[2]) == ARGV[3]
local late = ARGV[3] ~= '' and not mine and redis.call('EXISTS', KEYS[1], KEYS[2]) > 0
if late or (ARGV[4] == '1' and redis.call('EXISTS', KEYS[1]) > 0) then
  late = redis.call('GETRANGE', KEYS[1], 0, {TAG_BYTES - 1}) ~= string.sub(ARGV[1], 1, {TAG_BYTES})
end
if tonumber(ARGV[2]) > 0 and not late then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
if mine then redis.call('DEL', KEYS[2]) end
return late and 0 or 1
"""
# A claim that would outlive what anybody claims for (a restored dump, a clock set back) is none.
_CLAIM = """
local mine = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2])
if not mine then
  local left = redis.call('PTTL', KEYS[2])
  if redis.call('GET', KEYS[2]) == ARGV[1] or left < 0 or left > tonumber(ARGV[2]) then
    mine = redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
  end
end
return {mine and 1 or 0, redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}
"""
_EXTEND = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_FORGET = f"""
local tag = redis.call('GETRANGE', KEYS[1], 0, {TAG_BYTES - 1})
for _, candidate in ipairs(ARGV) do
  if tag == candidate then redis.call('DEL', KEYS[1]) end
end
"""


class Scripts:
    """Commands for names of ours; values are sealed on the way."""

    def __init__(self, vault: Vault, prefix: str) -> None:
        self._vault = vault
        self._prefix = prefix

    def key(self, name: str) -> str:
        return f"{{{self._prefix}:{name}}}"

    def _keys(self, name: str) -> tuple[str, str]:
        key = self.key(name)
        return key, f"{key}:claim"

    def read(self, name: str) -> Command:
        return _READ, (self.key(name),), ()

    def write(self, item: Put) -> Command:
        key = self.key(item.name)
        framed = self._vault.tags(key, item.value)[0] + self._vault.seal(key, item.value)
        arguments = (framed, int(item.seconds * 1000), item.owner, int(item.only_new))
        return _WRITE, self._keys(item.name), arguments

    def claim(self, name: str, owner: str, seconds: float) -> Command:
        return _CLAIM, self._keys(name), (owner, _milliseconds(seconds))

    def extend(self, name: str, owner: str, seconds: float) -> Command:
        return _EXTEND, self._keys(name)[1:], (owner, _milliseconds(seconds))

    def free(self, name: str, owner: str) -> Command:
        return _FREE, self._keys(name)[1:], (owner,)

    def forget(self, name: str, value: bytes) -> Command:
        key = self.key(name)
        return _FORGET, (key,), tuple(self._vault.tags(key, value))

    def opened(self, name: str, framed: bytes | None, left: int) -> Kept | None:
        """What a READ or CLAIM has found. left: milliseconds; negative for a value without an end,
        which nobody here has put."""
        if framed is None or left <= 0:
            return None
        value = self._vault.open(self.key(name), framed[TAG_BYTES:])
        return None if value is None else Kept(value, left / 1000)


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
