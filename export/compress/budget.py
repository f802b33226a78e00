"""What a compressed model may lose, as the user says it: `cosine=0.999`, `distance=0.05`, `top1=-0.3`, `recall=-0.5`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeclip.errors import InputError
from edgeclip.export.compress.figures import Figures


@dataclass(frozen=True)
class Kind:
    """One figure that may be bounded."""

    at_least: bool  # the figure may not fall below the bound; False: not rise above it
    lowest: float  # bounds that make sense
    highest: float
    meaning: str
    example: str


KINDS: Mapping[str, Kind] = {
    "cosine": Kind(True, 0, 1, "mean cosine to fp32, at least", "cosine=0.999"),
    "distance": Kind(False, 0, 2, "relative distance to fp32, at most", "distance=0.05"),
    "top1": Kind(True, -100, 0, "zero-shot top-1, points that may be lost", "top1=-0.3"),
    "recall": Kind(True, -100, 0, "recall of fp32's nearest ten, points that may be lost", "recall=-0.5"),
}
DEFAULT = "distance=0.10"
_ROUNDING = 1e-9  # a figure that equals its bound is within it


@dataclass(frozen=True)
class Budget:
    """One bound on one figure."""

    kind: str  # of KINDS
    bound: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From "cosine=0.999". Raises InputError that names what was wrong."""
        name, equals, number = (part.strip() for part in text.partition("="))
        if not equals or name not in KINDS:
            raise InputError(
                f"--budget {text}: expected FIGURE=NUMBER with a figure of {', '.join(KINDS)}, e.g. {KINDS['cosine'].example}."
            )
        kind = KINDS[name]
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if not kind.lowest <= bound <= kind.highest:
            raise InputError(
                f"--budget {text}: expected a number from {kind.lowest:g} to {kind.highest:g} ({kind.meaning}), "
                f"got {number or 'nothing'!r}. Write it like {kind.example}."
            )
        return cls(name, bound)

    def holds(self, figures: Figures) -> bool:
        """Whether the figures are within it. Raises ValueError for a figure that was not measured."""
        value = self._value(figures)
        return (
            value >= self.bound - _ROUNDING if KINDS[self.kind].at_least else value <= self.bound + _ROUNDING
        )

    def says(self, figures: Figures) -> str:
        """For a report, e.g. "distance 0.1160, at most 0.1 allowed"."""
        word = "at least" if KINDS[self.kind].at_least else "at most"
        return f"{self.kind} {self._value(figures):.5g}, {word} {self.bound:g} allowed"

    def __str__(self) -> str:
        return f"{self.kind}={self.bound:g}"

    def _value(self, figures: Figures) -> float:
        value: float | None = getattr(figures, self.kind)
        if value is None:
            raise ValueError(f"{self.kind} was not measured")
        return value


def parse_budgets(texts: Sequence[str]) -> tuple[Budget, ...]:
    """Every bound must hold; none given: DEFAULT. Raises InputError, also for a figure that is bounded twice."""
    budgets = tuple(Budget.parse(text) for text in texts or (DEFAULT,))
    names = [budget.kind for budget in budgets]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"--budget {twice}: given more than once. Give each figure one bound.")
    return budgets


def within(budgets: Sequence[Budget], figures: Figures) -> bool:
    """Whether all hold."""
    return all(budget.holds(figures) for budget in budgets)


def shortfalls(budgets: Sequence[Budget], figures: Figures) -> str:
    """What does not hold, with the figures; "" when all do."""
    return "; ".join(budget.says(figures) for budget in budgets if not budget.holds(figures))
