"""Which of an engine's profiles a call uses, and how many rows it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeclip.bundle.manifest import Port
from edgeclip.errors import EngineError
from edgeclip.runtime.tensorrt.record import Profile

WASTE = 4  # rows are rounded up to a power of two where no more than a quarter of them is padding


@dataclass(frozen=True)
class Shape:
    """How one call runs."""

    profile: int  # number of it
    run: dict[str, int]  # symbolic size -> what the engine is told
    room: dict[str, int]  # symbolic size -> what the buffers are made for


class Shapes:
    """The shapes that an engine was built for.

    Args:
        what: the engine, for messages.
        profiles: with every symbolic size of the graph.
    """

    def __init__(self, what: str, profiles: Sequence[Profile]) -> None:
        self.what, self.profiles = what, tuple(profiles)
        self.max_batch = max(profile["N"][2] for profile in self.profiles)
        # only N may change from call to call: then a lane's shape never does, and its work can be recorded
        self.fixed = all(
            least == most for profile in profiles for name, (least, _, most) in profile.items() if name != "N"
        )

    def choose(self, sizes: Mapping[str, int]) -> Shape:
        """The profile that holds these sizes and was tuned for the nearest ones.

        Args:
            sizes: every symbolic size, N among them.
        Raises:
            EngineError: no profile holds them.
        """
        fitting = [self._shape(i, sizes) for i, profile in enumerate(self.profiles) if _holds(profile, sizes)]
        if not fitting:
            raise EngineError(self._refusal(sizes))
        return min(fitting, key=lambda shape: _distance(self.profiles[shape.profile], shape.run))

    def _shape(self, number: int, sizes: Mapping[str, int]) -> Shape:
        profile = self.profiles[number]
        least, _, most = profile["N"]
        rounded = min(max(_power(sizes["N"]), least), most)
        rows = max(sizes["N"], least)
        if self.fixed and (rounded - sizes["N"]) * WASTE <= rounded:
            rows = rounded
        room = rows if self.fixed else rounded
        mosts = {name: span[2] for name, span in profile.items()}
        # prompts of each row's own go with the rows, those that pad included; one set serves any number of them
        own = {"B": rows} if sizes.get("B") == sizes["N"] > 1 else {}
        return Shape(number, {**sizes, "N": rows, **own}, {**mosts, "N": room})

    def _refusal(self, sizes: Mapping[str, int]) -> str:
        asked = ", ".join(f"{name}={size}" for name, size in sizes.items())
        built = "; ".join(
            ", ".join(f"{name} {least}-{most}" for name, (least, _, most) in profile.items())
            for profile in self.profiles
        )
        advice = (
            f"Take a batch of at most {self.max_batch}, or build it for more: edgeclip build --batch"
            if sizes["N"] > self.max_batch
            else "Ask for sizes within these, or use another engine"
        )
        return f"{self.what}: no profile for {asked}; it was built for {built}. {advice}"


def concrete(port: Port, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A port's shape. Raises EngineError where a symbolic size has no value."""
    if missing := [size for size in port.shape if isinstance(size, str) and size not in sizes]:
        raise EngineError(
            f"port {port.name}: no value for its size {missing[0]!r}; pass sizes={{{missing[0]!r}: ...}}."
        )
    return tuple(sizes[size] if isinstance(size, str) else size for size in port.shape)


def _holds(profile: Profile, sizes: Mapping[str, int]) -> bool:
    """Fewer rows than the least are padded; of the other sizes each is as it is."""
    return 1 <= sizes["N"] <= profile["N"][2] and all(
        profile[name][0] <= size <= profile[name][2] for name, size in sizes.items() if name != "N"
    )


def _power(rows: int) -> int:
    return 1 << (rows - 1).bit_length()


def _distance(profile: Profile, run: Mapping[str, int]) -> float:
    return sum(abs(math.log2(run[name] / profile[name][1])) for name in run)
