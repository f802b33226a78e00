"""Which of a bundle's graphs a library is given first: the Attention operator where it becomes a fused kernel, plain products elsewhere.

The kernels were found by building one attention at a time with TensorRT-RTX 1.7.1 for sm75, sm80, sm86, sm89 and sm120: 24 widths of a head
from 8 to 320, no mask, causal and additive, 1 to 16384 tokens, fixed and open. Masks and tokens made no difference, nor did the GPU, but
that nothing in bf16 builds for sm75.
 fp16, bf16  heads of 9 to 256       fp8  as the fp16 that it stands beside       fp32  none
One query alone (the last block of a tower that pools one token, SigLIP's pooling head) has kernels of its own, in fp32 as well: heads of 8,
16, 24, ... 256, of which there must be 4 (a larger smallest batch makes up for fewer).
TensorRT 10.14 and newer refuse, as TensorRT-RTX does, an operator without a kernel, unless it is marked decomposable.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeclip.bundle import Variant
from edgeclip.runtime.tensorrt.library import Library

READS_ATTENTION = (10, 14)  # TensorRT's parser, from this release on; TensorRT-RTX 1.7's as well
FUSED_TYPES, FUSED_WIDTHS = ("fp16", "bf16"), range(9, 257)
ONE_QUERY_TYPES, ONE_QUERY_WIDTHS = ("fp32", "fp16", "bf16"), range(8, 257, 8)
ONE_QUERY_HEADS = 4  # at least
# Precisions whose attention is in one of FUSED_TYPES; int8 and int4 stand beside fp32.
FUSED_PRECISIONS = (*FUSED_TYPES, "fp8")


def choose(variants: Sequence[Variant], library: Library) -> list[Variant]:
    """The variants that a library reads, in the order to try: alike in precision, they differ in how attention is written.

    Args:
        variants: of one tower, in the bundle's order, which decides between equals.
    Returns:
        [] where it reads none.
    """
    readable = [variant for variant in variants if reads(library, variant)]
    return sorted(readable, key=lambda variant: _wrong_flavour(variant, library))


def reads(library: Library, variant: Variant) -> bool:
    """Whether a library's parser takes a variant's graph, as far as its bundle says; one made before that was recorded may pass."""
    needs = variant.requires.get("tensorrt", "")
    if needs == "none":
        return False
    if library.ahead_of_time:  # TensorRT-RTX has numbers of its own, and reads what the newest TensorRT does
        return True
    if needs:
        major, minor = needs.split(".")[:2]
        return library.number >= (int(major), int(minor))
    return variant.axes.attention != "op" or library.number >= READS_ATTENTION


def has_kernel(dtype: str, heads: int, queries: int, width: int) -> bool:
    """Whether an attention becomes one fused kernel, at any batch.

    Args:
        dtype: of its queries, e.g. "fp16".
        queries: of one head; -1: open.
        width: of one head.
    """
    if queries == 1:
        return dtype in ONE_QUERY_TYPES and width in ONE_QUERY_WIDTHS and heads >= ONE_QUERY_HEADS
    return dtype in FUSED_TYPES and width in FUSED_WIDTHS


def _wrong_flavour(variant: Variant, library: Library) -> bool:
    if variant.axes.attention == "none":
        return False
    fused = variant.axes.precision in FUSED_PRECISIONS
    return (variant.axes.attention == "op") != fused
