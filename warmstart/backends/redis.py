"""Redis or Valkey as an ordered map: ``redis://host:port/db?store=name``.

One sorted set holds the keys (all of score zero, which Redis keeps in the order of their bytes),
one hash the values, one their sequence numbers. A batch is one script: it runs on the server, all
of it or nothing. Scripts are told an operation's id, so that one whose reply was lost can be sent
again and happens once. All keys of a store have one hash tag, and live in one slot of a cluster.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from warmstart.backends import Batch, Durability, Item, check
from warmstart.caller import complain
from warmstart.errors import ArgumentError, StoreError, StoreFullError
from warmstart.locks import free_in_children
from warmstart.pulse import Pulse

__all__ = ["RedisBackend"]

_SCHEMA = b"1"
_DEADLINE = 2.0
"""Seconds that any call may take."""
_PAGE = 500
"""Pairs that one script returns."""
_LEASE = 30_000
"""Milliseconds for which a lock outlives its owner."""
_OLDEST = (6, 2)
_MOVES = 3
"""Times that one call follows a slot of a cluster to another node."""
_T = TypeVar("_T")

_APPLY = """
local done = redis.call('GET', KEYS[5])
if done then return tonumber(done) end
local batch = cmsgpack.unpack(ARGV[1])
for _, condition in ipairs(batch[1]) do
  local held = redis.call('HGET', KEYS[3], condition[1])
  if (held and tonumber(held) or -1) ~= condition[2] then
    redis.call('SET', KEYS[5], -1, 'PX', 60000)
    return -1
  end
end
local sequence = redis.call('INCR', KEYS[4])
local size = 0
for _, key in ipairs(batch[2]) do
  if redis.call('ZREM', KEYS[1], key) == 1 then
    size = size - #key - redis.call('HSTRLEN', KEYS[2], key) - 128
    redis.call('HDEL', KEYS[2], key)
    redis.call('HDEL', KEYS[3], key)
  end
end
for _, pair in ipairs(batch[3]) do
  if redis.call('ZADD', KEYS[1], 0, pair[1]) == 1 then size = size + #pair[1] + 128 end
  size = size + #pair[2] - redis.call('HSTRLEN', KEYS[2], pair[1])
  redis.call('HSET', KEYS[2], pair[1], pair[2])
  redis.call('HSET', KEYS[3], pair[1], sequence)
end
redis.call('INCRBY', KEYS[6], size)
redis.call('SET', KEYS[5], sequence, 'PX', 60000)
return sequence
"""
_SCAN = """
local keys = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3])
local found, head = {}, tonumber(ARGV[4])
for i, key in ipairs(keys) do
  local value = redis.call('HGET', KEYS[2], key) or ''
  local size = #value
  if head >= 0 then value = string.sub(value, 1, head) end
  found[i] = {key, value, redis.call('HGET', KEYS[3], key) or '0', size}
end
return found
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
_RENEW = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""


class RedisBackend:
    """The backend protocol over a Redis or Valkey server of version 6.2 or later.

    Parameters
    ----------
    url : str
        ``redis://``, ``rediss://`` or ``unix://``, as redis-py takes them; ``store=`` names one of
        several stores in a database.
    read_only : bool
        Refuse to write.

    Notes
    -----
    Every call has two seconds. One whose reply is lost is sent once more. A server that evicts
    keys of its own accord is refused, one without an append-only file warned of. In a cluster all
    keys of a store are in one slot, and live on one node, which is found. Safe across
    threads and forks, as redis-py's connections are.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        try:
            import redis  # noqa: PLC0415 (optional)
        except ImportError:
            raise ArgumentError("redis:// needs redis-py: pip install redis") from None
        self._redis = redis
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        name = query.pop("store", "warmstart")
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ArgumentError(f"store= is letters, digits, - and _, not {name!r:.60}")
        self._url = url
        try:
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise ArgumentError(f"this is not an address of Redis: {error}") from None
        shown = f"{host}:{port}" if port else host
        self._shown = urlunsplit((parts.scheme, shown, parts.path, f"store={name}", ""))
        self._read_only = read_only
        self._tag = f"{{warmstart:{name}}}"
        self._parts = parts._replace(query=urlencode(query))
        self._connect(self._parts)
        database = parts.path.strip("/")
        if database and not database.isdecimal():
            raise ArgumentError(
                f"the path of {self._shown} is the number of a database, not {database!r:.60}"
            )
        try:
            self._client.connection_pool.make_connection()  # which connects to nothing yet
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"redis-py does not take {self._parts.query!r:.80} in {self._shown}: {error}"
            ) from None
        self._checked = False
        self._waits = False
        self._gate = threading.Lock()
        free_in_children(self, "_gate")

    @property
    def address(self) -> str:
        """Where it is, without a password."""
        return self._shown

    def _connect(self, parts: SplitResult) -> None:
        retry = self._redis.retry.Retry(self._redis.backoff.NoBackoff(), 0)
        try:
            self._client = self._redis.Redis.from_url(
                urlunsplit(parts),
                socket_timeout=_DEADLINE,
                socket_connect_timeout=_DEADLINE,
                retry=retry,
                health_check_interval=30,
            )
        except ValueError as error:
            raise ArgumentError(f"{self._shown} is not an address of Redis: {error}") from None
        self._apply, self._scan, self._release, self._renew = (
            self._client.register_script(text) for text in (_APPLY, _SCAN, _RELEASE, _RENEW)
        )

    def _move(self, host: str, port: int) -> None:
        """Go to the node of a cluster that has the slot of all keys of this store."""
        user, mark, _ = self._parts.netloc.rpartition("@")
        name = host or self._parts.hostname or ""
        where = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
        old, self._checked = self._client, False
        self._connect(self._parts._replace(netloc=f"{user}{mark}{where}"))
        old.close()

    def _key(self, name: str) -> str:
        return f"{self._tag}:{name}"

    def _do(self, operation: Callable[[], _T]) -> _T:
        """Do something with the server; once more if the connection was lost, or it has moved."""
        errors = self._redis.exceptions
        lost, moves = False, 0
        while True:
            try:
                if not self._checked:
                    self._check_server()
                return operation()
            except (errors.AuthenticationError, errors.AuthorizationError) as error:
                raise StoreError(f"{self._shown} lets nobody in with this password") from error
            except errors.OutOfMemoryError as error:
                raise StoreFullError(f"{self._shown} has no memory left: {error}") from error
            except (errors.ConnectionError, errors.TimeoutError, OSError) as error:
                # A connection that has grown old is made anew; a slow server is left alone.
                if lost or isinstance(error, errors.TimeoutError):
                    raise StoreError(f"{self._shown} does not answer: {error}") from error
                lost = True
            except errors.MovedError as error:
                if moves == _MOVES:
                    raise StoreError(f"{self._shown} moves its slots: {error}") from error
                moves += 1
                self._move(error.host, error.port)
            except errors.RedisError as error:
                full = "OOM" in str(error) or "MISCONF" in str(error)
                kind = StoreFullError if full else StoreError
                raise kind(f"{self._shown} refuses: {error}") from error

    def _check_server(self) -> None:
        with self._gate:
            if self._checked:
                return
            told = self._client.info()
            version = str(told.get("redis_version", "0"))
            numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
            if numbers < _OLDEST:
                raise StoreError(
                    f"{self._shown} is Redis {version}; 6.2 is the oldest that will do"
                )
            policy = str(told.get("maxmemory_policy", ""))
            if policy.startswith("allkeys") and told.get("maxmemory"):
                raise StoreError(
                    f"{self._shown} evicts keys of its own accord (maxmemory-policy {policy}), "
                    "which would lose results silently: set noeviction or a volatile policy"
                )
            durable = bool(told.get("aof_enabled"))
            if not durable:
                complain(
                    f"{self._shown} has no append-only file: what it keeps ends with it "
                    "(appendonly yes)"
                )
            self._waits = durable and numbers >= (7, 2)
            if not self._read_only:
                self._client.set(self._key("schema"), _SCHEMA, nx=True)
            found = self._client.get(self._key("schema"))
            if found not in (None, _SCHEMA):
                raise StoreError(
                    f"{self._shown} was written by a newer version of warmstart (schema "
                    f"{found!r:.20}): update warmstart, or use another store="
                )
            self._checked = True

    def get(self, key: bytes) -> Item | None:
        """Return the pair at `key`, or None. One round trip."""

        def read() -> list[Any]:
            # In one transaction: a writer may come between two commands.
            pipe = self._client.pipeline(transaction=True)
            pipe.hget(self._key("v"), key)
            pipe.hget(self._key("q"), key)
            return list(pipe.execute())

        value, sequence = self._do(read)
        return None if value is None else Item(key, value, int(sequence), len(value))

    def scan(
        self,
        prefix: bytes,
        *,
        after: bytes = b"",
        limit: int | None = None,
        head: int | None = None,
    ) -> list[Item]:
        """Return the pairs whose keys begin with `prefix`, in order; one round trip for 500."""
        found: list[Item] = []
        keys = [self._key(name) for name in "zvq"]
        upper = _upper(prefix)
        while limit is None or len(found) < limit:
            lower = b"(" + after if after and after >= prefix else b"[" + prefix
            count = _PAGE if limit is None else min(_PAGE, limit - len(found))
            arguments = [lower, upper, count, -1 if head is None else head]
            page = self._do(lambda a=arguments: self._scan(keys=keys, args=a))  # type: ignore[misc]
            found += [Item(key, value, int(seq), size) for key, value, seq, size in page]
            if len(page) < count:
                break
            after = found[-1].key
        return found

    def apply(self, batch: Batch, durability: Durability = Durability.PROCESS) -> int | None:
        """Do the whole batch and return its number, or None if a condition failed."""
        check(batch, durability)
        if self._read_only:
            raise StoreError(f"{self._shown} was opened read only")
        packed = msgspec.msgpack.encode(
            (
                [(_raw(k), -1 if s is None else s) for k, s in batch.conditions.items()],
                [_raw(key) for key in batch.deletes],
                [(_raw(key), _raw(bytes(value))) for key, value in batch.puts.items()],
            )
        )
        names = ("z", "v", "q", "n", f"o:{secrets.token_hex(12)}", "b")
        keys = [self._key(name) for name in names]
        sequence = int(self._do(lambda: self._apply(keys=keys, args=[packed])))
        if sequence < 0:
            return None
        if durability is Durability.POWER:
            self.flush()
        return sequence

    def version(self) -> object:
        """Return the number of the last batch."""
        return self._do(lambda: self._client.get(self._key("n")))

    @contextlib.contextmanager
    def lock(self, name: str, timeout: float = -1.0) -> Iterator[bool]:
        """Hold a named lock; it is free thirty seconds after its owner has died."""
        key, token = self._key(f"l:{name}"), secrets.token_hex(12)
        deadline = time.monotonic() + timeout
        while True:
            got = bool(self._do(lambda: self._client.set(key, token, nx=True, px=_LEASE)))
            if got or (timeout >= 0.0 and time.monotonic() >= deadline):
                break
            time.sleep(0.05)
        if not got:
            yield False
            return

        def renew() -> None:
            self._do(lambda: self._renew(keys=[key], args=[token, _LEASE]))

        try:
            with Pulse(renew, _LEASE / 3000.0):
                yield True
        finally:
            with contextlib.suppress(StoreError):  # it runs out by itself
                self._do(lambda: self._release(keys=[key], args=[token]))

    def flush(self) -> None:
        """Return when the server has written its append-only file (7.2 and later)."""
        if self._checked and self._waits:
            wait = int(_DEADLINE * 1000.0) - 200
            command: Any = self._client.execute_command
            self._do(lambda: command("WAITAOF", 1, 0, wait))

    def size(self) -> int:
        """Return the bytes of keys and values, and 128 a pair."""
        return int(self._do(lambda: self._client.get(self._key("b"))) or 0)

    def now(self) -> float:
        """Return the server's time."""
        try:
            seconds, more = self._do(self._client.time)
        except self._redis.exceptions.NoPermissionError:  # then this machine's has to do
            return time.time()
        return float(seconds) + 1e-6 * float(more)

    def verify(self) -> list[str]:
        """Return whether keys, values and numbers belong together."""

        def count() -> list[int]:
            pipe = self._client.pipeline(transaction=True)
            pipe.zcard(self._key("z"))
            pipe.hlen(self._key("v"))
            pipe.hlen(self._key("q"))
            return [int(number) for number in pipe.execute()]

        keys, values, sequences = self._do(count)
        if keys == values == sequences:
            return []
        return [f"{self._shown} has {keys} keys, {values} values and {sequences} numbers"]

    def clear(self) -> None:
        """Delete the whole store from the server."""
        names = [self._key(name) for name in ("z", "v", "q", "n", "b", "schema")]
        self._do(lambda: self._client.delete(*names))

    def close(self) -> None:
        """Let go of the connections; they are made anew when they are needed."""
        self._client.close()
        self._client.connection_pool.disconnect()


def _raw(value: bytes) -> msgspec.Raw:
    """Return bytes in MessagePack's old form, the only one that the server's library reads."""
    size = len(value)
    if size < 32:
        return msgspec.Raw(bytes((0xA0 | size,)) + value)
    if size < 1 << 16:
        return msgspec.Raw(b"\xda" + size.to_bytes(2, "big") + value)
    return msgspec.Raw(b"\xdb" + size.to_bytes(4, "big") + value)


def _upper(prefix: bytes) -> bytes:
    """Return the end of a range of keys that begin with a prefix, as Redis writes it."""
    trimmed = prefix.rstrip(b"\xff")
    if not trimmed:
        return b"+"
    return b"(" + trimmed[:-1] + bytes((trimmed[-1] + 1,))
