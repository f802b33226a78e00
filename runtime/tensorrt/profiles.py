"""Optimisation profiles: the sizes that an engine is built for. Outside of them it refuses to run."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeclip.bundle import Manifest, Variant
from edgeclip.errors import EngineError, InputError
from edgeclip.runtime.tensorrt.record import Profile

Range = tuple[int, int, int]  # (least, best, most)

TEXT_BEST = 16  # tokens: a prompt such as "a photo of a cat" has 7 to 16 with its marks
# COCO has 80 names, ImageNet 1,000; the head is a thousandth of a tower's work. A proof asks for as many as a row has columns.
PROMPTS: Range = (1, 64, 1024)
BOXES: Range = (1, 16, 256)  # of a picture in one call; the runtime asks for no more at once


def parse_batch(text: str) -> Range:
    """Read "1:8:32" as (least, best, most). "1:32" is tuned for 32, "8" alone is always 8.

    Raises:
        InputError: not one to three numbers from 1 on, none below the one before.
    """
    if re.fullmatch(r"\d{1,6}(:\d{1,6}){0,2}", text.strip()):
        parts = [int(part) for part in text.split(":")]
        least, best, most = parts[0], parts[min(1, len(parts) - 1)], parts[-1]
        if 1 <= least <= best <= most:
            return least, best, most
    raise InputError(
        f"batch {text!r}: expected least:best:most such as 1:8:32, or one number, from 1 on and none below the one before."
    )


def symbols(variant: Variant) -> tuple[str, ...]:
    """The symbolic sizes of a graph's inputs, each once, in order."""
    sizes = (size for port in variant.inputs for size in port.shape if isinstance(size, str))
    return tuple(dict.fromkeys(sizes))


def profiles_for(variant: Variant, manifest: Manifest, batches: Sequence[Range]) -> tuple[Profile, ...]:
    """One profile a batch range, with every size that the runtime may ask of this graph; () where all its sizes are fixed.

    Args:
        variant: of an image or text tower, with any head.
        manifest: of its bundle, which knows how long texts get.
        batches: (least, best, most) rows of a call.
    Raises:
        EngineError: no batches, or a symbolic size of which nothing is known.
    """
    names = symbols(variant)
    if not names:
        return ()
    if not batches:
        raise EngineError(f"{variant.id}: its batch is open. Say for which batches to build, e.g. 1:8:32.")
    return tuple({name: _range(name, variant, manifest, batch) for name in names} for batch in batches)


def check_profiles(variant: Variant, profiles: Sequence[Profile]) -> None:
    """Hold profiles to a graph.

    Raises:
        EngineError: none for a graph with symbolic sizes, a size too many or too few, or one that does not grow from 1 on.
    """
    names = symbols(variant)
    if names and not profiles:
        raise EngineError(f"{variant.id}: needs a profile with {', '.join(names)}, got none.")
    for i, profile in enumerate(profiles):
        where = f"{variant.id}: profile {i}"
        if set(profile) != set(names):
            raise EngineError(
                f"{where}: expected sizes of {', '.join(names) or 'nothing'}, got {', '.join(profile) or 'none'}."
            )
        for name, (least, best, most) in profile.items():
            if not 1 <= least <= best <= most:
                raise EngineError(
                    f"{where}: {name} is {least}:{best}:{most}, expected least:best:most from 1 on, none below the one before."
                )


def _range(name: str, variant: Variant, manifest: Manifest, batch: Range) -> Range:
    if name == "N":
        return batch
    if name == "L" and manifest.text is not None:
        most = manifest.text.context_length
        return 1, min(TEXT_BEST, most), most
    if name == "P":
        return *PROMPTS[:2], max(PROMPTS[2], manifest.embedding_dim)
    if name == "R":
        return BOXES
    if name == "B":  # one set of prompts for all pictures, or one each
        return 1, 1, batch[2]
    raise EngineError(f"{variant.id}: nothing is known of its size {name!r}. Export the bundle again.")
