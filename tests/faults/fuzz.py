"""Coverage-guided fuzzing of what reads bytes from elsewhere: the decoder, and `import`.

Atheris (libFuzzer) changes inputs and keeps those that reach new branches, for half of the time with
each target. The inputs are what stands behind the checksums, which are put right: otherwise
hardly one would get further. A target may refuse its input, as it says that it does, and nothing
else. ``corpus/`` has a minimised selection of inputs, which a test replays without Atheris.

The amount is in seconds, *tried* are inputs, *wrong* the targets that were broken.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from faults.campaign import Outcome, Say
from warmstart.backends import Item
from warmstart.backends.memory import MemoryBackend
from warmstart.bundle import read_bundle
from warmstart.carrying import keep
from warmstart.codec import encode_payload
from warmstart.errors import BundleError, CodecError, RecordError
from warmstart.learned import Cost, Saved
from warmstart.packing import loads
from warmstart.record import HEAD_SIZE, decode_record, producer_tag, seal
from warmstart.rows import Lease, RunInfo, pages, read, read_small

__all__ = ["CORPUS", "TARGETS", "can_fuzz", "run"]

CORPUS = Path(__file__).with_name("corpus")
_BUDGET = 1 << 24
_RUN = "import sys; from faults.fuzz import fuzz; fuzz(*sys.argv[1:])"


def decode(data: bytes) -> None:
    """Decode a record, a payload, or a small row."""
    kind, data = data[:1], data[1:]
    if kind < b"@":
        with_record(data)
    elif kind < b"\x80":
        with contextlib.suppress(CodecError):
            encode_payload(loads(data))
    else:
        for row in (RunInfo, Lease, Saved, Cost):
            read_small(Item(b"r", seal(data), 1, len(data) + 16), row)


def with_record(data: bytes) -> None:
    """Decode a record whose header and body are given, and whose checksums are right."""
    (size,) = struct.unpack("<H", data[:2].ljust(2, b"\0"))
    try:
        entry = decode_record(record(data[2 : 2 + size], data[2 + size :]), max_bytes=_BUDGET)
    except RecordError:
        return
    encode_payload(entry.payload)


def record(header: bytes, body: bytes) -> bytes:
    """Return a record of a header and a body."""
    prefix = struct.pack(
        "<4sHBBdd8sIIQ", b"WSrc", 1, 2, 1, 1.0, 2.0, producer_tag(""), len(header), 0, len(body)
    )
    made = prefix + header + bytes(-(HEAD_SIZE + len(header)) % 16) + body
    return made + blake3(made).digest()


def bundle(data: bytes) -> None:
    """Import a bundle: as it is, or made of members that are given, with their checksums right."""
    raw = data[1:]
    if data[:1] < b"\x80":
        raw = zipped(raw)
    backend = MemoryBackend()
    with tempfile.NamedTemporaryFile() as file:
        file.write(raw)
        file.flush()
        with contextlib.suppress(BundleError):
            read_bundle(
                backend,
                file.name,
                lambda _done, _total: None,
                entry_budget=_BUDGET,
                journal_budget=_BUDGET,
                keep_journal=functools.partial(keep, backend, now=0.0),
            )
    for item in pages(backend, b"e", head=None):
        read(item)  # nothing that cannot be read was let in


def zipped(data: bytes) -> bytes:
    """Return a zip file: a byte says what a member is, two how long it is."""
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as made:
        warnings.simplefilter("ignore")  # a name that comes twice
        made.writestr("warmstart.json", '{"format": 1, "records": 1}')
        while len(data) > 3:
            kind, size = struct.unpack_from("<BH", data)
            content, data = data[3 : 3 + size], data[3 + size :]
            digits = blake3(content[:1]).hexdigest()
            if kind < 100:
                (split,) = struct.unpack("<H", content[:2].ljust(2, b"\0"))
                whole = record(content[2 : 2 + split], content[2 + split :])
                name = f"entries/{content[6:38].hex():0<64}/{content[40:56].hex():0<32}.f"
                made.writestr(name, whole)
            elif kind < 150:
                made.writestr(f"keys/{digits}", seal(content))
            elif kind < 170:
                made.writestr("x" + content[:40].decode("latin-1"), content)
            elif kind < 180:
                made.writestr(f"rows/{content[:20].hex()}", seal(content[20:]))
            elif kind < 190:
                made.writestr(f"blobs/{blake3(content).hexdigest()}", content)
            elif kind < 200:
                made.writestr(f"journals/{digits}/{digits[:16]}-{digits[:32]}.journal", content)
            else:
                made.writestr("warmstart.json", content)
    return out.getvalue()


TARGETS: dict[str, Callable[[bytes], None]] = {"decode": decode, "bundle": bundle}


def can_fuzz() -> str:
    """Return why there can be no fuzzing here, or nothing."""
    return "" if importlib.util.find_spec("atheris") else "Atheris is not installed"


def fuzz(name: str, *options: str) -> None:
    """Fuzz one target, in a process of its own."""
    import atheris

    atheris.instrument_imports(include=["warmstart"])
    for module in ("codec", "record", "bundle", "rows", "journal"):
        for function in vars(sys.modules[f"warmstart.{module}"]).values():
            if getattr(function, "__module__", "") == f"warmstart.{module}" and hasattr(
                function, "__code__"
            ):
                atheris.instrument_func(function)
    atheris.Setup(["fuzz", *options], TARGETS[name])
    atheris.Fuzz()


def run(amount: int, seed: int, say: Say) -> Outcome:
    """Fuzz for `amount` seconds."""
    outcome = Outcome()
    if reason := can_fuzz():
        outcome.figures["skipped"] = reason
        return outcome
    path = os.pathsep.join(p for p in sys.path if p)
    for number, name in enumerate(TARGETS):
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copytree(CORPUS / name, Path(scratch, "corpus"))
            options = f"-max_total_time={amount // len(TARGETS)} -seed={seed + 1} -timeout=10"
            options += f" -rss_limit_mb=2048 -max_len=4096 -print_final_stats=1 {scratch}/corpus"
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    _RUN,
                    name,
                    f"-artifact_prefix={scratch}/",
                    *options.split(),
                ],
                capture_output=True,
                env=os.environ | {"PYTHONPATH": path},
                check=False,
                text=True,
                errors="replace",
            )
            tried = re.search(r"number_of_executed_units: (\d+)", done.stderr)
            covered = re.findall(r"cov: (\d+)", done.stderr)
            inputs = int(tried[1]) if tried else 0
            outcome.tried += inputs
            outcome.figures[f"{name}: inputs"] = inputs
            outcome.figures[f"{name}: branches"] = int(covered[-1]) if covered else 0
            if done.returncode or not inputs:
                outcome.wrong += 1
                outcome.figures[f"{name}: told"] = done.stderr[-3000:]
            if keep := os.environ.get("FAULTS_KEEP"):
                shutil.copytree(scratch, Path(keep, name), dirs_exist_ok=True)
        say(amount * (number + 1) // len(TARGETS))
    outcome.survived = outcome.tried - outcome.wrong
    return outcome
