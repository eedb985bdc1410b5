"""What a campaign of faults reports, and what every campaign needs.

A campaign is a function ``run(amount, seed, say)`` in a module of this folder that is named in
`CAMPAIGNS`. It breaks something `amount` times and returns an `Outcome`; ``python
bench/faults.py`` runs them all at full length, the tests beside them at a short one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["CAMPAIGNS", "Outcome", "Say"]

Say = Callable[[int], None]
"""Told how many of the amount are done."""

CAMPAIGNS: dict[str, tuple[int, int]] = {
    "power": (5000, 60),
    "flips": (20_000, 200),
    "full": (300, 6),
    "hostile": (5000, 30),
    "fuzz": (600, 8),
    "kills": (2_000, 60),
    "histories": (1_000, 20),
    "long": (3_600, 120),
    "forks": (100, 10),
}
"""Modules of this folder, in the order in which they run: the full amount, and the short one."""


@dataclass
class Outcome:
    """What a campaign came to.

    Parameters
    ----------
    tried : int
        Faults that were made.
    survived : int
        Those after which everything was as it should be.
    lost : int
        Acknowledged records that were gone, within what law 5 allows or not.
    wrong : int
        Results that were not what they had to be: must be 0.
    allowed : bool
        Whether what was lost is within law 5.
    figures : dict
        What else is worth a line: names and values.
    troubles : list of str
        What was lost or wrong, the first of it.
    """

    tried: int = 0
    survived: int = 0
    lost: int = 0
    wrong: int = 0
    allowed: bool = True
    figures: dict[str, object] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    def tell(self, where: object, *what: str) -> None:
        """Keep what went wrong, for people; the first twenty of it."""
        told = [f"{where}: {text.strip()[-1500:]}" for text in what]
        self.troubles = [*self.troubles, *told][:20]

    @property
    def passed(self) -> bool:
        """Whether nothing was wrong and nothing was lost that had to be kept."""
        return not self.wrong and self.allowed
