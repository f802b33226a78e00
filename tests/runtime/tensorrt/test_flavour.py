"""Which graph a library is given first; and the table of fused kernels, held against what TensorRT-RTX really builds."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from edgeclip.bundle import Axes, Port, Variant
from edgeclip.runtime.tensorrt.flavour import FUSED_WIDTHS, choose, has_kernel, reads
from edgeclip.runtime.tensorrt.library import Library
from tests.runtime.tensorrt.graphs import attention, parsed, plan_size

OP, PLAIN = {"tensorrt": "10.16"}, {"tensorrt": "10.3"}


def library(version: str, name: str = "tensorrt") -> Library:
    return Library(name, ModuleType("no_library"), version)


def variants(precision: Any, *kinds: Any, **requires: dict[str, str]) -> list[Variant]:
    port = Port("pixels", "float32", ("N", 3, 32, 32))
    return [
        Variant(
            kind, "image", Axes(precision, kind), (f"{kind}.onnx",), (port,), (port,), requires.get(kind, {})
        )
        for kind in kinds
    ]


RTX = library("1.7.1.116", "tensorrt-rtx")


@pytest.mark.parametrize(
    ("where", "precision", "order"),
    [
        (library("10.3.0.30"), "fp16", ["decomposed"]),
        (library("10.13.3"), "fp16", ["decomposed"]),
        (library("10.16.1.11"), "fp16", ["op", "decomposed"]),
        (library("11.4.0"), "fp16", ["op", "decomposed"]),
        (library("11.4.0"), "fp32", ["decomposed", "op"]),  # no fused kernel in fp32
        (library("11.4.0"), "bf16", ["op", "decomposed"]),
        (library("11.4.0"), "fp8", ["op", "decomposed"]),
        (library("11.4.0"), "int8", ["decomposed", "op"]),  # beside fp32
        (RTX, "fp16", ["op", "decomposed"]),
        (RTX, "fp32", ["decomposed", "op"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("given", [("decomposed", "op"), ("op", "decomposed")])
def test_order(where: Library, precision: str, order: list[str], given: tuple[str, str]) -> None:
    recorded = choose(variants(precision, *given, op=OP, decomposed=PLAIN), where)
    assert [variant.id for variant in recorded] == order
    old = choose(variants(precision, *given), where)  # a bundle from before it was recorded
    assert [variant.id for variant in old] == order


def test_the_bundle_decides_between_equals() -> None:
    given = variants("fp16", "none", "op", "none")
    assert choose(given, RTX) == given


def test_what_no_release_reads_is_left_out() -> None:
    for where in (library("11.4.0"), RTX):
        assert choose(variants("int8", "decomposed", decomposed={"tensorrt": "none"}), where) == []


def test_releases_count_as_numbers() -> None:
    (variant,) = variants("fp16", "op", op={"tensorrt": "10.16"})
    assert [reads(library(v), variant) for v in ("10.3.0", "10.9.0", "10.16.0", "11.0.0")] == [
        False,
        False,
        True,
        True,
    ]


CASES = [
    *[("float16", width, 50, mask, 2) for width in (8, 9, 64, 72, 256, 257) for mask in ("", "causal", "additive")],
    *[("bfloat16", width, 50, "", 2) for width in (8, 88, 256)],
    ("float", 64, 50, "", 2), ("float", 64, 1, "", 12), ("float", 60, 1, "", 4),
    ("float16", 8, 1, "", 4), ("float16", 257, 1, "", 4), ("float16", 72, 1, "additive", 4),
    *[("float16", 64, queries, "", heads) for queries in (1, 2) for heads in (1, 3, 4)],
]  # fmt: skip
WORDS = {"float16": "fp16", "bfloat16": "bf16", "float": "fp32"}


@pytest.mark.parametrize(("dtype", "width", "queries", "mask", "heads"), CASES)
def test_the_table_is_what_builds(dtype: str, width: int, queries: int, mask: str, heads: int) -> None:
    with parsed(attention(dtype, width, queries, mask=mask, heads=heads)) as (trt, builder, network):
        built = plan_size(trt, builder, network, "sm86") is not None
    assert built == has_kernel(WORDS[dtype], heads, queries, width)


def test_the_width_of_every_published_clip_has_a_kernel() -> None:
    """B, L: 64; SO400M: 72; H: 80; g: 88; bigG: 104."""
    assert all(width in FUSED_WIDTHS for width in (64, 72, 80, 88, 104))


@pytest.mark.parity  # 20 s: every width by every GPU
@pytest.mark.parametrize("arch", ["sm75", "sm80", "sm86", "sm89", "sm120"])
def test_the_whole_table(arch: str) -> None:
    wrong = []
    for dtype in ("float16", "bfloat16"):
        for width in (8, 9, 12, 16, 24, 32, 40, 48, 64, 72, 80, 88, 96, 104, 128, 192, 256, 257):
            for mask in ("", "causal", "additive"):
                with parsed(attention(dtype, width, mask=mask)) as (trt, builder, network):
                    built = plan_size(trt, builder, network, arch) is not None
                if built != (
                    has_kernel(WORDS[dtype], 2, 50, width) and (arch, dtype) != ("sm75", "bfloat16")
                ):
                    wrong.append((dtype, width, mask))
    assert not wrong
