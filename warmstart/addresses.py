"""Where stores are: addresses, what stands at them, and the folders of this machine beside them."""

from __future__ import annotations

import os
from pathlib import Path

from blake3 import blake3

from warmstart.backends import Backend
from warmstart.backends.lmdb import LmdbBackend
from warmstart.backends.memory import MemoryBackend
from warmstart.errors import ArgumentError

__all__ = ["MEMORY", "address_of", "backend_at", "cache_folder", "is_remote", "own_folder"]

MEMORY = ":memory:"
_SCHEMES = ("dir", "redis", "rediss", "postgresql", "postgres")
_PLACES = (
    'a store is at a folder (str or path), ":memory:", or an address such as '
    '"redis://host/0", "postgresql://host/name" or "dir:///shared/folder"'
)


def address_of(where: str | os.PathLike[str] | None) -> str:
    """Return the address that was meant, or refuse it."""
    if where is None:
        where = os.environ.get("WARMSTART_STORE") or cache_folder()
    if not isinstance(where, (str, os.PathLike)):
        raise ArgumentError(f"{_PLACES}, not {type(where).__name__}")
    text = os.fspath(where)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ArgumentError(f"{_PLACES}, not {text!r:.80}")
    if text == MEMORY:
        return text
    scheme, mark, _ = text.partition("://")
    if mark and scheme not in _SCHEMES:
        raise ArgumentError(
            f"{scheme}:// is not a kind of store that is known: write a folder, ':memory:', or an "
            f"address that begins with {'://, '.join(_SCHEMES)}://"
        )
    if mark:
        return text
    scheme = text.partition(":")[0]
    if scheme in _SCHEMES and scheme != text:
        raise ArgumentError(
            f"{text!r:.80} lacks slashes (a Path takes them away): write the text "
            f"'{scheme}://...', or './{text:.60}' for a folder of that name"
        )
    return str(Path(text).expanduser().absolute())


def is_remote(address: str) -> bool:
    """Whether several machines may use what is at an address."""
    return "://" in address


def backend_at(where: str, *, read_only: bool) -> Backend:
    """Return the backend of an address."""
    scheme, mark, _ = where.partition("://")
    if where == MEMORY:
        return MemoryBackend()
    if not mark:
        return LmdbBackend(where, read_only=read_only)
    # Imported where they are used: most stores are folders.
    if scheme == "dir":
        from warmstart.backends.directory import DirectoryBackend  # noqa: PLC0415

        return DirectoryBackend(where, read_only=read_only)
    if scheme in {"redis", "rediss"}:
        from warmstart.backends.redis import RedisBackend  # noqa: PLC0415

        return RedisBackend(where, read_only=read_only)
    from warmstart.backends.postgres import PostgresBackend  # noqa: PLC0415

    return PostgresBackend(where, read_only=read_only)


def cache_folder() -> str:
    """Return the platform's folder for what can be made again."""
    import platformdirs  # noqa: PLC0415 (3 ms, and most stores are told where)

    return platformdirs.user_cache_dir("warmstart")


def own_folder(parent: str | os.PathLike[str] | None, kind: str, address: str) -> str:
    """Return the folder of this machine for what belongs to an address, in the cache by default."""
    above = Path(cache_folder(), kind) if parent is None else Path(parent).expanduser().absolute()
    return str(above / blake3(address.encode()).hexdigest(length=12))
