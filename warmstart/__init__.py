"""Numerical fits remembered, resumable and quick to start.

A cache of fits around scipy.optimize. ``from warmstart import optimize`` stands in for
``from scipy import optimize``; `using` and `Warm` set options; `Store` and `Session` are for
people who drive the optimizer themselves.
"""

from __future__ import annotations

from warmstart import optimize
from warmstart.artifacts import Artifact
from warmstart.backends import Durability
from warmstart.dataset import Dataset, dataset
from warmstart.errors import (
    ArgumentError,
    BundleError,
    BusyError,
    CodecError,
    ExperimentLookupError,
    FingerprintError,
    KeyLookupError,
    NearError,
    RecordError,
    ReplayError,
    RunLookupError,
    StatusError,
    StoreError,
    StoreFullError,
    WarmstartError,
    WarmstartWarning,
)
from warmstart.experiment import Experiment
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
from warmstart.run import Run
from warmstart.search import Runs
from warmstart.series import Series
from warmstart.session import LoadedEntry, LoadSource, Session
from warmstart.steps import Policy, State
from warmstart.store import Store
from warmstart.upkeep import StoreStats, VerifyReport
from warmstart.warm import FitReport, Near, Warm, using

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "Artifact",
    "BundleError",
    "BusyError",
    "CodecError",
    "Dataset",
    "Difference",
    "Durability",
    "Entry",
    "EntryKind",
    "Experiment",
    "ExperimentLookupError",
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
    "Policy",
    "RecordError",
    "ReplayError",
    "Run",
    "RunInfo",
    "RunLookupError",
    "Runs",
    "Series",
    "Session",
    "Start",
    "State",
    "StatusError",
    "Store",
    "StoreError",
    "StoreFullError",
    "StoreStats",
    "VerifyReport",
    "Warm",
    "WarmstartError",
    "WarmstartWarning",
    "dataset",
    "optimize",
    "patch",
    "replaying",
    "using",
]
