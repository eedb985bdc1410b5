"""The one family of errors and warnings; every error is also a builtin kind."""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "BundleError",
    "BusyError",
    "CodecError",
    "ExperimentLookupError",
    "FingerprintError",
    "KeyLookupError",
    "NearError",
    "RecordError",
    "RecordVersionError",
    "ReplayError",
    "RunLookupError",
    "StatusError",
    "StoreError",
    "StoreFullError",
    "WarmstartError",
    "WarmstartWarning",
]


class WarmstartError(Exception):
    """Whatever warmstart itself raises."""


class ArgumentError(WarmstartError, ValueError, TypeError):
    """An argument is of the wrong kind or value; the message says what to write instead."""


class FingerprintError(WarmstartError, TypeError):
    """A value cannot be identified for sure, so nothing that depends on it gets a key.

    Parameters
    ----------
    reason : str
        What was found and why it has no identity.
    path : str, optional
        Where it was found, as a Python expression below the argument (``args[0].db``).

    Notes
    -----
    The path grows from the inside out while the error travels up through the containers.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.path = path

    def inside(self, step: str) -> FingerprintError:
        """Return the same error seen from one container further out."""
        return FingerprintError(self.reason, step + self.path)

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return (
            f"{where}{self.reason}. Name what is fitted yourself to go on: "
            'Warm(model="name-and-version", data=[...]), or pass the value as an argument '
            "that can be identified (arrays, numbers, strings, your own functions)"
        )


class CodecError(WarmstartError, ValueError):
    """Bytes are not a payload that this version wrote, or a payload cannot be written."""


class RecordError(WarmstartError, ValueError):
    """Bytes are not a whole, undamaged record."""


class RecordVersionError(RecordError):
    """A record is of a newer format than this version reads; it is left alone, never swept."""


class BusyError(WarmstartError, RuntimeError):
    """Another process is at the same fit (with ``busy="raise"``)."""


class NearError(WarmstartError, LookupError):
    """A near start was required, and none was found."""


class ReplayError(WarmstartError, RuntimeError):
    """A journal does not fit the function it is said to be of (with ``strict=True``)."""


class StoreError(WarmstartError, OSError):
    """The store's place cannot be used; the message says why and what to do."""


class StoreFullError(StoreError):
    """The disk (or the quota) has no room for another record."""


class BundleError(WarmstartError, ValueError):
    """A file is not a bundle written by ``Store.export``."""


class KeyLookupError(WarmstartError, LookupError):
    """No key of the store, or more than one, begins with the given digits."""


class RunLookupError(KeyLookupError):
    """No run of the store, or more than one, has this id or begins with these digits."""


class ExperimentLookupError(KeyLookupError):
    """No experiment of the store has this id or name, or one has it already."""


class StatusError(WarmstartError, RuntimeError):
    """A run does not go from the status that it has to the one that was asked for."""


class WarmstartWarning(UserWarning):
    """Something is not remembered, or the store is not used, and why."""
