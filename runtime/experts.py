"""What the experts of a tower's mixtures do: which tokens take which, for one picture or over many.

Shapes: R mixtures of a tower, in the order of its blocks; T tokens; E the most experts of a mixture.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Bundle
from edgeclip.bundle.manifest import Experts
from edgeclip.errors import BundleError, EngineError, InputError

Shares = NDArray[np.float32]
Grid = tuple[int, int]  # (rows, columns)
# Shares are added as whole multiples of this: sums of whole numbers are the same in any order, and 2**39 tokens fit.
_STEP = 2.0**-24


@dataclass(frozen=True)
class Routing:
    """What the routers of one tower said of one picture or text."""

    tower: str
    blocks: tuple[int, ...]  # those with a mixture, from 0
    experts: tuple[int, ...]  # of each of them
    shares: (
        Shares  # (R, T, E), 0 where an expert was not chosen; a padded position of a text has 0 everywhere
    )
    grid: Grid | None  # of a picture's patches; None: of a text, or a tower whose tokens are no grid

    def map_of(self, block: int) -> NDArray[np.int64]:
        """(rows, columns): the expert with the largest share in each patch, of equal ones the first.

        The grid lies over the picture as the tower saw it, resized and cropped, not over the file.

        Raises:
            InputError: a block without a mixture, or tokens that are no grid.
        """
        rows = self.patches(block)
        return np.asarray(rows.argmax(axis=-1))

    def patches(self, block: int) -> Shares:
        """(rows, columns, E): the shares in each patch; a class token is left out. Raises as `map_of`."""
        if block not in self.blocks:
            known = ", ".join(map(str, self.blocks))
            raise InputError(
                f"block {block}: has no mixture of experts; the {self.tower} tower's are {known}."
            )
        if self.grid is None:
            raise InputError(f"{self.tower} tower: its {self.shares.shape[1]} tokens are no grid of patches.")
        rows, columns = self.grid
        found = self.shares[self.blocks.index(block), -rows * columns :]
        return found.reshape(rows, columns, -1)


@dataclass(frozen=True, order=True)
class Surest:
    """A patch that an expert took with a large share."""

    share: float  # 0-1 of the mixture's output
    draw: float  # which of equal shares comes first: drawn, so that no corner of the picture is preferred
    picture: int  # its number among the pictures, from 0
    row: int
    column: int


@dataclass(frozen=True)
class ExpertUse:
    """How much each expert of a tower was used."""

    tower: str  # "image" or "text"
    blocks: tuple[int, ...]  # those with a mixture, from 0
    experts: tuple[int, ...]  # of each of them
    top_k: int
    samples: int  # pictures or texts that were looked at
    skipped: int  # pictures that cannot be used
    tokens: int  # of all samples, class tokens included, padding not
    chosen: NDArray[
        np.int64
    ]  # (R, E): tokens that took the expert; a share too small for float32 does not count
    shares: NDArray[np.float64]  # (R, E): sum of the shares that tokens gave it
    grid: Grid | None = None  # of a picture's patches
    # (block, expert) -> the patches that it took most surely, the surest first, of each picture one at most
    surest: Mapping[tuple[int, int], tuple[Surest, ...]] = field(default_factory=dict)

    @property
    def choices(self) -> NDArray[np.float64]:
        """(R, E): what part of a block's choices fell on the expert; rows add up to 1."""
        return np.asarray(self.chosen / np.maximum(self.chosen.sum(axis=1, keepdims=True), 1))

    @property
    def mean_shares(self) -> NDArray[np.float64]:
        """(R, E): the expert's mean share of a token's output where it was chosen; 0 where it never was."""
        return np.asarray(self.shares / np.maximum(self.chosen, 1))

    @property
    def balance(self) -> NDArray[np.float64]:
        """(R,): entropy of the choices over that of equal ones. 1: all experts are used alike; 0: one does everything."""
        found = np.ones(len(self.blocks))
        for i, (row, experts) in enumerate(zip(self.choices, self.experts, strict=True)):
            used = row[row > 0]
            if experts > 1:
                found[i] = max(0.0, -float((used * np.log(used)).sum())) / math.log(experts)
        return found

    def below(self, share: float) -> list[tuple[int, int, float]]:
        """(block, expert, part of the block's choices) of each expert that was used at most so much; 0: the never used."""
        return [
            (block, expert, float(row[expert]))
            for block, experts, row in zip(self.blocks, self.experts, self.choices, strict=True)
            for expert in range(experts)
            if row[expert] <= share
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: by block, lists over its experts."""
        return {
            "tower": self.tower,
            "top_k": self.top_k,
            "samples": self.samples,
            "skipped": self.skipped,
            "tokens": self.tokens,
            "blocks": [
                {
                    "block": block,
                    "tokens": self.chosen[i, :experts].tolist(),
                    "choices": self.choices[i, :experts].tolist(),
                    "mean_share": self.mean_shares[i, :experts].tolist(),
                    "balance": float(self.balance[i]),
                }
                for i, (block, experts) in enumerate(zip(self.blocks, self.experts, strict=True))
            ],
        }


class UseCounter:
    """Counts use sample by sample, in memory that does not grow; the result does not depend on their order.

    Args:
        experts: what the bundle says of the tower's mixtures.
        grid: of a picture's patches; None: none are kept.
        keep: patches to keep of each expert.
    """

    def __init__(self, tower: str, experts: Experts, *, grid: Grid | None = None, keep: int = 0) -> None:
        self._tower, self._experts, self._grid, self._keep = tower, experts, grid, keep
        shape = len(experts.blocks), max(experts.counts)
        self._chosen, self._steps = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._samples = self._tokens = 0
        self._surest: dict[tuple[int, int], list[Surest]] = {}

    def add(self, number: int, shares: Shares) -> None:
        """Count one sample. `number`: which one it is; `shares`: (R, T, E)."""
        chosen = shares > 0
        self._samples += 1
        self._tokens += int(chosen[0].any(axis=-1).sum())
        self._chosen += chosen.sum(axis=1)
        self._steps += np.rint(shares.astype(np.float64) / _STEP).astype(np.int64).sum(axis=1)
        if self._keep and self._grid:
            self._keep_surest(number, shares[:, -math.prod(self._grid) :])

    def _keep_surest(self, number: int, patches: Shares) -> None:
        """The best patch (R, P, E) of this picture, for each expert that has one."""
        assert self._grid is not None
        random = np.random.default_rng(number)
        order, draw = random.permutation(patches.shape[1]), random.random()
        places = order[patches[:, order].argmax(axis=1)]  # (R, E)
        for i, (block, experts) in enumerate(zip(self._experts.blocks, self._experts.counts, strict=True)):
            for expert in range(experts):
                place = int(places[i, expert])
                share = float(patches[i, place, expert])
                if share > 0:
                    found = Surest(share, draw, number, *divmod(place, self._grid[1]))
                    kept = self._surest.setdefault((block, expert), [])
                    (heapq.heappush if len(kept) < self._keep else heapq.heappushpop)(kept, found)

    def use(self, skipped: int = 0) -> ExpertUse:
        """What was counted. `skipped`: pictures that could not be used."""
        return ExpertUse(
            tower=self._tower,
            blocks=self._experts.blocks,
            experts=self._experts.counts,
            top_k=self._experts.top_k,
            samples=self._samples,
            skipped=skipped,
            tokens=self._tokens,
            chosen=self._chosen.copy(),
            shares=np.asarray(self._steps * _STEP, np.float64),
            grid=self._grid,
            surest={key: tuple(sorted(kept, reverse=True)) for key, kept in self._surest.items()},
        )


def mixtures_of(bundle: Bundle) -> dict[str, Experts]:
    """What a bundle says of the mixtures of its image and text towers; {} where every feed-forward is dense."""
    found: dict[str, Experts] = {}
    for variant in bundle.manifest.variants:
        if variant.experts is not None and variant.tower in ("image", "text"):
            found.setdefault(variant.tower, variant.experts)
    return found


def require_routing(bundle: Bundle, tower: str) -> Experts:
    """What the bundle says of this tower's mixtures.

    Raises:
        EngineError: the tower has none, or the bundle has no graph that tells who took what.
    """
    mixtures = mixtures_of(bundle)
    if not mixtures:
        raise EngineError(
            f"{bundle.root}: no tower of this bundle has mixtures of experts, so there is no use to count."
        )
    if tower not in mixtures:
        have = " and ".join(mixtures)
        given = "texts" if "text" in mixtures else "pictures"
        raise EngineError(
            f"{bundle.root}: the mixtures of experts are in the {have} tower only. Pass {given}."
        )
    if not bundle.manifest.variants_of(tower, "routing"):
        raise EngineError(
            f"{bundle.root}: no graph of this bundle tells which expert took what (head routing). "
            "Export the source again: `edgeclip export` adds one."
        )
    return mixtures[tower]


def check_shares(bundle: Bundle, experts: Experts, shape: tuple[int, ...]) -> None:
    """Whether (R, T, E) that a graph gave fits what the bundle says of it. Raises BundleError."""
    if (shape[0], shape[-1]) != (len(experts.blocks), max(experts.counts)):
        raise BundleError(
            f"{bundle.root}: the routing graph gives {shape[0]} mixtures of {shape[-1]} experts, the bundle says "
            f"{len(experts.blocks)} of {max(experts.counts)}. It is damaged: export it again."
        )


def grid_of(tokens: int, size: tuple[int, int]) -> Grid | None:
    """(rows, columns) of the square patches of a (H, W) input, with or without a class token before them; None: no such grid."""
    divisor = math.gcd(*size)
    high, wide = size[0] // divisor, size[1] // divisor
    for patches in (tokens - 1, tokens):
        scale = math.isqrt(max(patches, 0) // (high * wide))
        if scale and scale * scale * high * wide == patches:
            return scale * high, scale * wide
    return None
