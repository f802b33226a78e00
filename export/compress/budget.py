"""What a compressed model may lose, as the user says it: `cosine=0.999`, `distance=0.05`, `top1=-0.3`, of a detector `box=0.005`."""

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
    boxes: bool = False  # only a detector has it


KINDS: Mapping[str, Kind] = {
    "cosine": Kind(True, 0, 1, "mean cosine to fp32, at least", "cosine=0.999"),
    "distance": Kind(False, 0, 2, "relative distance to fp32, at most", "distance=0.05"),
    "top1": Kind(True, -100, 0, "zero-shot top-1, points that may be lost", "top1=-0.3"),
    "recall": Kind(True, -100, 0, "recall of fp32's nearest ten, points that may be lost", "recall=-0.5"),
    "box": Kind(False, 0, 1, "mean change of a corner in shares of the side, at most", "box=0.005", True),
    "score": Kind(False, 0, 1, "mean change of a score, at most", "score=0.02", True),
    "agreement": Kind(True, 0, 1, "F1 of the detections with fp32's, at least", "agreement=0.95", True),
}
DEFAULT = "distance=0.10"
# Of a detector, unless a figure of boxes is given. A hundredth of the side is 8 of 768 pixels. No agreement: without labels of what is in
# the pictures there may be nothing to agree on.
DEFAULT_BOXES = ("box=0.01", "score=0.02")
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


def of_tower(budgets: Sequence[Budget], tower: str) -> tuple[Budget, ...]:
    """Those that concern a tower. A detector is bounded in its embeddings and in its boxes, where need be by the defaults."""
    rows = tuple(budget for budget in budgets if not KINDS[budget.kind].boxes) or (Budget.parse(DEFAULT),)
    boxes = tuple(budget for budget in budgets if KINDS[budget.kind].boxes)
    return rows if tower != "detector" else (*rows, *(boxes or map(Budget.parse, DEFAULT_BOXES)))


def within(budgets: Sequence[Budget], figures: Figures) -> bool:
    """Whether all hold."""
    return all(budget.holds(figures) for budget in budgets)


def shortfalls(budgets: Sequence[Budget], figures: Figures) -> str:
    """What does not hold, with the figures; "" when all do."""
    return "; ".join(budget.says(figures) for budget in budgets if not budget.holds(figures))
