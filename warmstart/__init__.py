"""Numerical fits remembered, resumable and quick to start.

A cache of fits around scipy.optimize. ``from warmstart import optimize`` stands in for
``from scipy import optimize``; `using` and `Warm` set options; `Store` and `Session` are for
people who drive the optimizer themselves.
"""

from __future__ import annotations

from warmstart import optimize
from warmstart.backends import Durability
from warmstart.errors import (
    ArgumentError,
    BundleError,
    CodecError,
    FingerprintError,
    KeyLookupError,
    NearError,
    RecordError,
    ReplayError,
    StoreError,
    StoreFullError,
    WarmstartError,
    WarmstartWarning,
)
from warmstart.fingerprint import (
    Difference,
    Fingerprint,
    Fingerprinter,
    FitSpec,
    Level,
)
from warmstart.patch import patch
from warmstart.record import Entry, EntryKind, Start
from warmstart.recording import replaying
from warmstart.rows import RunInfo
from warmstart.session import LoadedEntry, LoadSource, Session
from warmstart.store import Store
from warmstart.upkeep import StoreStats, VerifyReport
from warmstart.warm import FitReport, Near, Warm, using

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "BundleError",
    "CodecError",
    "Difference",
    "Durability",
    "Entry",
    "EntryKind",
    "Fingerprint",
    "FingerprintError",
    "Fingerprinter",
    "FitReport",
    "FitSpec",
    "KeyLookupError",
    "Level",
    "LoadSource",
    "LoadedEntry",
    "Near",
    "NearError",
    "RecordError",
    "ReplayError",
    "RunInfo",
    "Session",
    "Start",
    "Store",
    "StoreError",
    "StoreFullError",
    "StoreStats",
    "VerifyReport",
    "Warm",
    "WarmstartError",
    "WarmstartWarning",
    "optimize",
    "patch",
    "replaying",
    "using",
]
