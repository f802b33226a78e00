"""A student that was finished in int8 becomes what it was trained as: its own ranges and bytes, nothing searched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeclip.bundle import Bundle, Variant, open_bundle
from edgeclip.cli import run
from edgeclip.errors import InputError
from edgeclip.export.compress import bench
from edgeclip.export.compress.api import CompressSettings, compress_bundle
from edgeclip.export.derive import read_graph
from edgeclip.export.linears import array_of, linears
from edgeclip.export.precision import Request, convert
from edgeclip.export.precision.finished import Finished, read, save_ranges
from edgeclip.export.samples import made_up_pictures, pixels_of
from tests.export.sources import PREPROCESSING

Speed = Callable[[float], None]


@pytest.fixture
def finished(tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Finished]:
    """The image tower's weights lie on bytes; the file of its ranges is tmp_path/ranges. Half as wide as searched: a figure tells them apart."""
    plain = read_graph(tiny, tiny.manifest.variants_of("image")[0])
    pixels = pixels_of(made_up_pictures(16), PREPROCESSING)
    int8 = convert(plain, "int8", Request(inputs=pixels, smoothing=0, threads=1)).model
    known = read(int8)
    have = {name: array_of(value) for name, value in int8.graph.initializers.items()}

    def on_bytes(bundle: Bundle, variant: Variant) -> ir.Model:
        model = read_graph(bundle, variant)
        for layer in linears(model) if variant.tower == "image" else ():
            if layer.name in known:
                q, scale, value = (
                    have[f"{layer.name}.int8"],
                    have[f"{layer.name}.scale"],
                    layer.node.inputs[1],
                )
                assert q is not None
                assert scale is not None
                assert value is not None
                value.const_value = ir.tensor(q.astype(np.float32) * scale)
        return model

    monkeypatch.setattr(bench, "read_graph", on_bytes)
    halved = {
        name: replace(one, x=replace(one.x, scale=np.float32(one.x.scale * 0.75)))
        for name, one in known.items()
    }
    save_ranges(tmp_path / "ranges", {"image": halved})
    return halved


def test_its_ranges_are_the_graphs(
    tiny: Bundle, classes: Path, tmp_path: Path, speed: Speed, finished: dict[str, Finished]
) -> None:
    settings = CompressSettings(images=classes, towers=("image",), ranges=tmp_path / "ranges", threads=1)
    report = compress_bundle(tiny, tmp_path / "out", settings=settings)
    assert {point.method for point in report.points} == {"float", "int8"}  # int8-dynamic was not tried
    bundle = open_bundle(tmp_path / "out")
    variant = bundle.manifest.variants[0]
    assert variant.id == "image-int8"
    written = read(ir.load(bundle.path(variant.files[0])))
    left = set(report.chosen["image"].left)
    assert written.keys() == finished.keys() - left
    assert len(written) > 0
    for name, one in written.items():
        assert one.x.scale == finished[name].x.scale
        assert one.x.zero == finished[name].x.zero
        np.testing.assert_array_equal(one.largest, finished[name].largest)
    assert len(bundle.manifest.provenance["history"][-1]["compress"]["ranges"]) == 64


def test_what_is_refused(
    tiny: Bundle, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], speed: Speed, finished: dict[str, Finished]
) -> None:  # fmt: skip
    base: Any = CompressSettings(images=classes, ranges=tmp_path / "ranges", threads=1)
    with pytest.raises(
        InputError, match=r"--ranges: the student was finished for int8\. Leave --precision out"
    ):
        compress_bundle(tiny, tmp_path / "out", settings=replace(base, methods=("fp16",)))
    save_ranges(tmp_path / "detector", {"detector": finished})
    with pytest.raises(InputError, match="is of a student with a tower 'detector'"):
        compress_bundle(tiny, tmp_path / "out", settings=replace(base, ranges=tmp_path / "detector"))
    command = ["compress", str(tiny.root), "-o", str(tmp_path / "out"), "--ranges", str(tmp_path / "nothing")]
    assert run(command) == 2
    assert "expected the ranges that finishing leaves" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
