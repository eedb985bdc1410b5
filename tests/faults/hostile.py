"""Hostile records: nonsense, bombs and forgeries under right checksums, before every reader.

Rows of a store that has something of everything are replaced by others that somebody made on
purpose: values of the wrong type or size in a real row, numbers that are none, text that is a path,
nesting without end, sizes that no file has, content of one kind of row under the letter of another,
keys that are too short or no text, forged payloads, compressed bombs; journals with right checksums
and wrong lengths; bundles that are no bundles. All that reads a store then reads it, in a process
that may take half a gigabyte more and some seconds.

*Wrong* is an exception where something is read, a death, too much memory or time, and a fit that
fails or ends elsewhere than plain scipy.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import scipy.optimize
import zstandard
from blake3 import blake3

import warmstart
from faults.campaign import Outcome, Say
from faults.children import in_children
from warmstart import FitSpec, Store, Warm, series
from warmstart.backends import Batch
from warmstart.cli import main as command
from warmstart.errors import BundleError, RecordError, WarmstartError
from warmstart.journal import MAGIC
from warmstart.record import HEAD_SIZE, read_head, seal, unseal
from warmstart.rows import pages

__all__ = ["run"]

_MEMORY = 512 << 20
_SECONDS = 20.0
_LETTERS = "abcdehijklmnoprstuwxyz"
_POISONED = 4
"""Rows at a time."""


def run(amount: int, seed: int, say: Say) -> Outcome:
    """Poison `amount` stores, journals and bundles."""
    outcome = Outcome()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        work = _Check(Path(scratch))
        seeds = range(seed * 1_000_003, seed * 1_000_003 + amount)
        for answer in in_children(seeds, work, batch=20, timeout=_SECONDS, memory=_MEMORY):
            outcome.tried += 1
            wrong = [answer.failure] if answer.failure else answer.value
            outcome.wrong += bool(wrong)
            outcome.survived += not wrong
            outcome.tell(answer.item, *wrong)
            say(outcome.tried)
    return outcome


def valley(x, lift):
    """Return Rosenbrock's function, lifted."""
    if os.environ.get("FAULTS_STOP") and x[0] > 0.0:
        raise KeyboardInterrupt
    return float(100.0 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2 + lift)


def _fit(module: Any, lift: float, **more: Any) -> Any:
    start = np.array([-1.2, 1.0])
    return module.minimize(valley, start, (lift,), method="BFGS", **more)


# Poison


_NUMBERS = (
    float("nan"),
    float("inf"),
    -float("inf"),
    1e308,
    -1.0,
    0,
    -1,
    (1 << 63) - 1,
    -(1 << 63),
)
_TEXTS = (
    "",
    "\0",
    "../../x",
    "/etc/passwd",
    "<script>alert(1)</script>",
    "x" * 100_000,
    "\u202e",
    "0" * 32,
)
_TREES: tuple[Any, ...] = (None, True, [], {}, b"", b"\xff" * 40, [[]], {"": None}, [None] * 1000)
_RAW = (
    b"",
    b"\xc1",
    b"\x91" * 100_000,
    b"\x81\xa1a" * 50_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\x82\xcb\x7f\xf8\0\0\0\0\0\0\1\xcb\x7f\xf8\0\0\0\0\0\0\1",
    b"\x82\xa1a\1\xa1a\2",
    b"\xc7\x08\xff" + b"\xff" * 8,
    b"\xd6\xff\0\0\0\0",
)


def _poison(rng: random.Random) -> Any:
    return rng.choice(rng.choice((_NUMBERS, _TEXTS, _TREES)))


def _spoil(tree: Any, rng: random.Random) -> Any:
    """Return a tree with one part replaced, lost, or too many."""
    if isinstance(tree, (list, dict)) and tree and rng.random() < 0.85:
        made = tree.copy()
        place = rng.choice(list(made)) if isinstance(made, dict) else rng.randrange(len(made))
        if rng.random() < 0.15:
            del made[place]
        elif isinstance(made, list) and rng.random() < 0.1:
            made += [made[place]] * rng.choice((1, 1000))
        else:
            made[place] = _spoil(made[place], rng)
        return made
    if isinstance(tree, bytes) and tree and rng.random() < 0.5:
        return _spoiled_bytes(tree, rng)
    return _poison(rng)


def _spoiled_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Return what bytes hold, spoiled, if it can be read; else some of them changed."""
    with contextlib.suppress(msgspec.MsgspecError, RecursionError):
        tree = msgspec.msgpack.decode(raw)
        if isinstance(tree, (list, dict)):
            return msgspec.msgpack.encode(_spoil(tree, rng))
    made = bytearray(raw)
    for _ in range(rng.choice((1, 3))):
        made[rng.randrange(len(made))] = rng.choice((0, 1, 0x7F, 0xFF))
    return bytes(made[: rng.choice((len(made), len(made), rng.randrange(len(made) + 1)))])


def _body(raw: bytes, rng: random.Random) -> bytes:
    """Return what stands in a small row, spoiled."""
    if rng.random() < 0.25:
        return rng.choice(_RAW)
    (size,) = struct.unpack_from("<I", raw) if len(raw) > 4 else (0,)
    if 0 < size < len(raw) and rng.random() < 0.7:  # a payload: see `warmstart.packing.dumps`
        head = _spoiled_bytes(raw[4 : 4 + size], rng)
        return struct.pack("<I", len(head)) + head + raw[4 + size :]
    return _spoiled_bytes(raw, rng) if raw else b""


def _record(record: bytes, rng: random.Random) -> bytes:
    """Return a forged record."""
    size, _, body_size = struct.unpack_from("<IIQ", record, 32)
    header = record[HEAD_SIZE : HEAD_SIZE + size]
    body = record[len(record) - 32 - body_size : -32]
    prefix = bytearray(record[:HEAD_SIZE])
    chance = rng.random()
    if chance < 0.6:
        header = _spoiled_bytes(header, rng)
    elif chance < 0.8:
        fields = msgspec.msgpack.decode(header)
        body, length = _bomb(rng)
        fields[-2] = [0, len(body), length, rng.choice((1, 2))]
        fields[-1] = [4, "<f8", 0, [length // 8], 0]
        body += bytes(-len(body) % 16)
        header = msgspec.msgpack.encode(fields)
    elif chance < 0.9:
        header = rng.choice(_RAW)
    else:
        prefix[rng.randrange(4, 32)] ^= rng.randrange(1, 256)
    struct.pack_into("<IIQ", prefix, 32, len(header), 0, len(body))
    made = bytes(prefix) + header + bytes(-(HEAD_SIZE + len(header)) % 16) + body
    return made + blake3(made).digest()


def _bomb(rng: random.Random) -> tuple[bytes, int]:
    """Return a small frame of zstd, and what it says that it becomes."""
    length = rng.choice((1 << 20, 200 << 20, 1 << 33, 1 << 60))
    real = min(length, 200 << 20)
    frame = zstandard.ZstdCompressor(write_content_size=rng.random() < 0.8).compressobj(size=real)
    zeros = bytes(1 << 20)
    packed = b"".join(frame.compress(zeros) for _ in range(real >> 20)) + frame.flush()
    return packed.ljust(
        rng.choice((0, -(-length // 1024) if length < 1 << 30 else 0)), b"\0"
    ), length


def _key(key: bytes, rng: random.Random) -> bytes:
    chance = rng.random()
    if chance < 0.7:
        return key
    if chance < 0.8:
        return rng.choice(_LETTERS).encode() + key[1:]
    if chance < 0.9:
        return key[: rng.randint(1, len(key))]
    return (key[: rng.randint(1, len(key))] + rng.randbytes(rng.randint(1, 40)))[:480]


class _Check:
    """Poisons a copy of a store, and has everything read it."""

    def __init__(self, scratch: Path) -> None:
        os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
        self.scratch = scratch
        self.plain = _fit(scipy.optimize, 0.5)
        with Store(scratch / "store") as store:
            self.make(store)
            store.export(scratch / "bundle.zip")
        store = Store(scratch / "store", read_only=True)
        self.rows = {item.key: item.value for item in pages(store.backend, b"", head=None)}
        store.close()

    def make(self, store: Store) -> None:
        """Put something of everything there is into a store."""
        with store.session(FitSpec(model="by hand", data={"n": np.arange(9.0)})) as session:
            session.checkpoint({"x": np.arange(500.0)}, 2.0, 1)
            session.finalize({"x": np.arange(500.0), "more": [1, {"a": (2.0, b"3")}]}, 1.0)
        self.key = session.key
        store.pin(session.key)
        for lift in (0.0, 0.1, 0.2):
            near = Warm(store=store, near=True, hyper={"lift": lift})
            _fit(warmstart.optimize, lift, warm=near)
            _fit(warmstart.optimize, lift, warm=near)
        experiment = store.create_experiment("trial", tags={"a": "b"}, config={"c": 1})
        with store.run(experiment, name="tracked", params={"rate": 0.5}) as run:
            run.log_metric("loss", 0.25)
            run.log_artifact("notes", b"text")
            run.set_tags({"stage": "one"})
        self.run = run.id
        os.environ["FAULTS_STOP"] = "1"
        with contextlib.suppress(KeyboardInterrupt):
            _fit(warmstart.optimize, 0.5, warm=Warm(store=store, journal=True))
        del os.environ["FAULTS_STOP"]
        store.flush()

    def __call__(self, seed: int) -> list[str]:
        rng = random.Random(seed)
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        wrong: list[str] = []
        try:
            shutil.copytree(self.scratch / "store", folder / "store")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind = rng.random()
                if kind < 0.15:
                    self.poison_journals(folder, rng)
                elif kind < 0.3:
                    self.read_bundle(folder, rng, wrong)
                else:
                    self.poison_rows(folder, rng)
                self.read_all(folder, wrong)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return wrong

    def poison_rows(self, folder: Path, rng: random.Random) -> None:
        puts = {}
        for _ in range(_POISONED):
            letter = rng.choice(sorted({key[:1] for key in self.rows}))
            key = rng.choice([key for key in self.rows if key[:1] == letter])
            puts[_key(key, rng)] = self.poisoned(key, rng)
        store = Store(folder / "store")
        store.backend.apply(Batch(puts))
        store.close()

    def poisoned(self, key: bytes, rng: random.Random) -> bytes:
        value = self.rows[key]
        try:
            read_head(value)
            return _record(value, rng)
        except RecordError:
            return seal(_body(unseal(value), rng))

    def poison_journals(self, folder: Path, rng: random.Random) -> None:
        """Change lengths, counts and forms, never a value: that would be another recording."""
        for path in folder.rglob("*.journal"):
            raw, at = path.read_bytes(), len(MAGIC)
            frames = []
            while at < len(raw):
                (size,) = struct.unpack_from("<I", raw, at)
                frames.append(bytearray(raw[at + 8 : at + 8 + size]))
                at += 8 + size
            frame = rng.choice(frames)
            if frame[:1] == b"E" and rng.random() < 0.8:
                places = (1, 2, 3, 4, 6) if rng.random() < 0.7 else range(1, len(frame), 18)
                frame[rng.choice(places)] = rng.choice((0, 2, 3, 5, 6, 7, 0x40, 0x80, 0xC5, 0xFF))
            elif frame[:1] == b"S":
                del frame[rng.randint(1, len(frame)) :]
            else:
                frame[1:] = rng.choice((_body(bytes(frame[1:]), rng), rng.choice(_RAW)))
            if rng.random() < 0.3:
                frames.insert(rng.randrange(len(frames)), frame)
            whole = (struct.pack("<II", len(f), zlib.crc32(f)) + bytes(f) for f in frames if f)
            path.write_bytes(MAGIC + b"".join(whole))

    def read_bundle(self, folder: Path, rng: random.Random, wrong: list[str]) -> None:
        path = folder / "bundle.zip"
        hostile_bundle(self.scratch / "bundle.zip", path, rng)
        store = Store(folder / "store")
        try:
            store.import_(path)
        except BundleError:
            pass
        except Exception as error:
            wrong.append(f"import raised {error!r}")
        store.close()

    def read_all(self, folder: Path, wrong: list[str]) -> None:
        address = folder / "store"
        store = Store(address)
        for name, reader in self.readers(store, folder).items():
            try:
                reader()
            except WarmstartError as error:
                if name not in {"show", "models"}:
                    wrong.append(f"{name} raised {error!r}")
            except Exception as error:
                wrong.append(f"{name} raised {error!r} {_where(error)}")
        store.close()

    def readers(self, store: Store, folder: Path) -> dict[str, Callable[[], Any]]:
        def said(*arguments: str) -> None:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
                contextlib.suppress(SystemExit),
            ):
                command(["--store", str(folder / "store"), *arguments])

        def runs() -> None:
            for run in store.runs():
                _ = run.info, run.params, run.tags, run.is_dead
                for name in series.names(store.backend, run.id):
                    run.metrics(name)
                for artifact in run.artifacts:
                    with contextlib.suppress(WarmstartError):
                        run.load_artifact(artifact.name)

        def fit() -> None:
            found = _fit(warmstart.optimize, 0.5, warm=Warm(store=store, journal=True))
            if not np.isfinite(found.fun):
                raise ValueError(found)

        def near() -> None:
            found = _fit(
                warmstart.optimize, 0.3, warm=Warm(store=store, near=True, hyper={"lift": 0.3})
            )
            if abs(found.fun - 0.3) > 1e-6:
                raise ValueError(found)

        return {
            "best": lambda: store.best(self.key),
            "latest": lambda: store.latest(self.key),
            "entries": lambda: [store.entries(key) for key in store.keys()],
            "summary": lambda: [store.summary(key) for key in store.keys()],
            "runs": runs,
            "experiments": lambda: [e.name for e in store.experiments()],
            "families": store.families,
            "models": store.models,
            "lineage": store.lineage,
            "stats": store.stats,
            "html": store._repr_html_,
            "fit": fit,
            "near": near,
            "ls": lambda: said("ls"),
            "show": lambda: said("show", self.run),
            "fits": lambda: said("fits"),
            "ls families": lambda: said("families", "--models"),
            "report": lambda: said("report", "-o", str(folder / "page.html")),
            "verify": store.verify,
            "repair": lambda: store.verify(repair=True),
            "gc": store.gc,
            "export": lambda: store.export(folder / "out.zip"),
        }


def _where(error: BaseException) -> str:
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return "" if place is None else f"at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}"


def hostile_bundle(source: Path, target: Path, rng: random.Random) -> None:
    """Write a bundle that is none, or has members that are not what they say."""
    with zipfile.ZipFile(source) as good:
        members = {name: good.read(name) for name in good.namelist()}
    name = rng.choice(sorted(members))
    what = rng.randrange(8)
    if what == 0:
        members["warmstart.json"] = rng.choice((b"", b"[]", b"{", b"[" * 900, b'{"format": 1e999}'))
    elif what in {1, 2, 3} and name.startswith("entries"):
        members[name] = _record(members[name], rng)
    elif what == 4:
        members[name] = bytes(1 << 28)
    elif what == 5:
        for more in ("../../out", "/abs", "entries/" + "0" * 64 + "/..", "keys/" + "f" * 64):
            members[more] = rng.randbytes(50)
    else:
        members[name] = seal(rng.choice(_RAW))
    packing = zipfile.ZIP_DEFLATED if rng.random() < 0.8 else zipfile.ZIP_LZMA
    with zipfile.ZipFile(target, "w", packing) as made:
        for member, content in members.items():
            made.writestr(member, content)
    if rng.random() < 0.4:
        raw = bytearray(target.read_bytes())
        for _ in range(rng.choice((1, 4, 20))):  # in the directory at the end, or anywhere
            start = rng.choice((0, max(len(raw) - 400, 0)))
            raw[rng.randrange(start, len(raw))] = rng.choice((0, 1, 0x50, 0xFF))
        target.write_bytes(raw[: rng.choice((len(raw), len(raw), rng.randrange(len(raw)) + 1))])
