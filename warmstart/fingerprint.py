"""Keys: what a fit is, as 32 bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from warmstart.errors import ArgumentError

__all__ = ["Fingerprint"]

_HEX_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True, order=True, slots=True)
class Fingerprint:
    """The identity of a value: 32 bytes of BLAKE3, compared and ordered as bytes.

    Parameters
    ----------
    digest : bytes
        Exactly 32 bytes.

    Raises
    ------
    ArgumentError
        If `digest` is anything else.

    Examples
    --------
    >>> key = Fingerprint(bytes(range(32)))
    >>> str(key)[:8]
    '00010203'
    >>> Fingerprint.parse(str(key)) == key
    True
    """

    digest: bytes

    def __post_init__(self) -> None:
        if type(self.digest) is not bytes or len(self.digest) != 32:
            raise ArgumentError(f"a fingerprint is 32 bytes, not {self.digest!r:.80}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the fingerprint that `text` spells, 64 lowercase hexadecimal digits.

        Raises
        ------
        ArgumentError
            On anything else: other lengths, capitals, spaces, a prefix. What ``str`` writes
            is the only spelling, so equal keys have equal texts.
        """
        if not isinstance(text, str) or len(text) != 64 or not _HEX_DIGITS.issuperset(text):
            raise ArgumentError(
                f"a fingerprint is written as 64 lowercase hexadecimal digits, not {text!r:.80}"
            )
        return cls(bytes.fromhex(text))

    def __str__(self) -> str:
        return self.digest.hex()

    def __bytes__(self) -> bytes:
        return self.digest
