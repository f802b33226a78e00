"""Which form of a mixture of experts an engine is given first. Exact forms come before "capacity", which may drop choices.

onnxruntime on a CPU     gather: it computes the chosen experts only. Then dense.
onnxruntime on a GPU     dense: of how many tokens each expert has the host must hear before it can go on, and "gather" asks for each
                         expert of each block.
TensorRT                 dense: it takes fixed sizes only, so never gather. With few tokens both other forms read all experts' weights,
                         which is most of the time; with many, "capacity" saves products. That it drops choices is for the caller to accept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from edgeclip.bundle import Variant

_FIXED = ("dense", "capacity", "gather")
ORDER: Mapping[str, Sequence[str]] = {"onnxruntime-cpu": ("gather", "dense", "capacity")}  # of others: _FIXED

_Named = TypeVar("_Named", bound=Variant)


def in_order(variants: Sequence[_Named], engine: str) -> list[_Named]:
    """Variants as an engine of ENGINES would rather have them: of those that differ in form, by form; else as they stand.

    So a graph in int8 that the manifest prefers stays before one in fp32 of any form.
    """
    order = ("none", *ORDER.get(engine, _FIXED))
    kinds = list(dict.fromkeys(map(_kind, variants)))
    return sorted(variants, key=lambda one: (kinds.index(_kind(one)), order.index(one.axes.moe)))


def _kind(variant: Variant) -> tuple[object, ...]:
    """What two forms of one graph have in common."""
    axes = variant.axes
    return variant.tower, axes.head, axes.precision, axes.activations, axes.token_merging, axes.input


def loses(variant: Variant) -> str:
    """In words, what a variant may leave out; "" for an exact one."""
    if variant.axes.moe != "capacity":
        return ""
    dropped = variant.experts.dropped if variant.experts else None
    measured = "" if dropped is None else f" ({dropped:.2%} of the choices when it was measured)"
    return f"experts take a fixed number of tokens, and what finds no place is left out{measured}"
