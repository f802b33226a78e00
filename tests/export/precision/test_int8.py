"""int8 graphs: their values, that engines make integer products of them, and the ways in which others break."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from edgeclip.errors import InputError
from edgeclip.export.linears import array_of, convolutions, linears
from edgeclip.export.observe import rows, session
from edgeclip.export.onnx_graph import capture, trace, write
from edgeclip.export.passes import store_fp16
from edgeclip.export.precision import Converted, Request, convert
from edgeclip.export.precision.int8_conv import through_bytes
from edgeclip.export.precision.ranges import byte_range, see
from edgeclip.export.precision.smooth import smooth
from edgeclip.export.samples import made_up_pictures, pixels_of
from edgeclip.export.towers import TracedTower, tower_of
from edgeclip.models.nano import NanoCLIP, NanoConfig
from edgeclip.runtime.cpu import saturates
from edgeclip.runtime.fidelity import relative_distance
from tests.export.sources import LENGTH, PAD, PREPROCESSING, SIDE, VOCABULARY, clip_source, nano_source
from tests.export.test_floor import FLOOR, PROGRAM, VERSION
from tests.export.traced import captured as traced_towers
from tests.export.traced import make_ids
from tests.stress import plant_outliers, plant_stream_channel

PIXELS = pixels_of(made_up_pictures(24), PREPROCESSING)
IDS = make_ids(8)
LIMIT = 0.10  # relative distance that int8 may have; on these models it has 0.02


@cache
def captured(kind: Any, hard: bool) -> tuple[TracedTower, ir.Model]:
    """A tower, and its graph before a flavour is written: this is what takes the time."""
    if not hard:
        return traced_towers("openai", kind)[1:]
    source = clip_source()
    plant_outliers(source.model)
    tower = tower_of(source, kind)
    return tower, capture(tower)


@cache
def graph(kind: Any = "image", flavour: str = "decomposed", hard: bool = True) -> ir.Model:
    """A tower, with planted outliers or without."""
    tower, model = captured(kind, hard)
    return write(model, tower, next(one for one in tower.flavours if one.attention == flavour))[0]


@cache
def convolutional() -> ir.Model:
    """A NanoCLIP wide enough to have something to quantise."""
    torch.manual_seed(4)
    model = NanoCLIP(NanoConfig(SIDE, (16, 32), (1, 1), 24, VOCABULARY, 16, 1, LENGTH, PAD))
    model.train().encode_image(torch.from_numpy(PIXELS))  # batch norms see pictures
    tower = tower_of(replace(nano_source(), model=model.eval()), "image")
    return trace(tower, tower.flavours[0])[0]


def distance(model: ir.Model, other: ir.Model, inputs: NDArray[Any] = PIXELS) -> float:
    return relative_distance(rows(model, inputs), rows(other, inputs))


def optimised(model: ir.Model, tmp_path: Path) -> collections.Counter[str]:
    """Operators that onnxruntime runs."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return collections.Counter(
        node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node
    )


@pytest.mark.parametrize(
    ("method", "settings", "fused"),
    [
        ("int8", {"inputs": PIXELS}, "MatMulIntegerToFloat"),
        ("int8", {"inputs": PIXELS, "activations": "int8"}, "MatMulIntegerToFloat"),
        ("int8-dynamic", {}, "DynamicQuantizeMatMul"),
        ("int8-dynamic", {"inputs": PIXELS}, "DynamicQuantizeMatMul"),
    ],
)
def test_every_layer_becomes_an_integer_product_and_the_values_hold(
    method: str, settings: dict[str, Any], fused: str, tmp_path: Path
) -> None:
    model = graph(hard=False)
    found = convert(model, method, Request(**settings))
    report = next(one for one in found.reports if one.name == "int8")
    assert report.changed == 8  # two blocks of four
    first = "patches.weight: the first layer, which reads pixels"
    last = "projection.weight: the last layer, whose rounding errors would be the embedding's own"
    assert report.near_misses == ((last, first) if method == "int8" else (last,))
    operators = optimised(found.model, tmp_path)
    assert operators[fused] == 8
    assert operators["DequantizeLinear"] == 0
    assert distance(model, found.model) < 0.03
    # The same graph in onnx's own reference: bytes at a half may be rounded either way.
    want = ReferenceEvaluator(ir.to_proto(found.model)).run(None, {"pixels": PIXELS[:2]})[0]  # type: ignore[arg-type]
    assert np.abs(rows(found.model, PIXELS[:2]) - want).max() < 5e-3
    assert not any(node.domain for node in found.model.graph)


def test_a_product_is_what_numpy_makes_of_its_bytes() -> None:
    """The first linear layer by hand, from the initializers of the graph."""
    model = graph(hard=False)
    layer = linears(model)[0]
    found = convert(model, "int8", Request(inputs=PIXELS, layers=frozenset({layer.name}), smoothing=0)).model
    have = {str(value.name): value.const_value.numpy() for value in found.graph.initializers.values()}  # type: ignore[union-attr]
    product = next(
        n
        for n in found.graph
        if n.op_type == "MatMul"
        and n.inputs[1].producer() is not None
        and n.inputs[1].producer().op_type == "DequantizeLinear"
    )  # type: ignore[union-attr]
    quantised = product.inputs[0].producer().inputs[0].producer()  # type: ignore[union-attr]
    names = [str(value.name) for value in quantised.inputs]  # type: ignore[union-attr]
    add = product.outputs[0].consumers()[0]
    copy = found.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.extend(values[name] for name in (names[0], add.outputs[0].name))
    _, x, y = session(copy).run(None, {"pixels": PIXELS[:3]})
    a = np.clip(np.rint(x / have[names[1]]) + int(have[names[2]]), 0, 255).astype(np.int32) - int(
        have[names[2]]
    )
    q = have[f"{layer.name}.int8"].astype(np.int32)
    want = (a @ q) * (have[names[1]] * have[f"{layer.name}.scale"]) + have[f"{layer.name}.bias"]
    np.testing.assert_allclose(y, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_rows_know_their_batch_mates_only_where_ranges_are_dynamic() -> None:
    model = graph(hard=False)
    static = convert(model, "int8", Request(inputs=PIXELS)).model
    dynamic = convert(model, "int8-dynamic", Request()).model
    assert np.abs(rows(static, PIXELS, batch=8) - rows(static, PIXELS, batch=1)).max() < 2e-6
    assert np.abs(rows(dynamic, PIXELS, batch=8) - rows(dynamic, PIXELS, batch=1)).max() > 1e-4


@pytest.mark.parametrize(
    ("kind", "flavour"),
    [("image", "decomposed"), ("image", "op"), pytest.param("text", "decomposed", marks=pytest.mark.parity)],
)
def test_smoothing_repairs_planted_outliers_without_changing_the_function(kind: str, flavour: str) -> None:
    model, inputs = graph(kind, flavour), PIXELS if kind == "image" else IDS
    plain = convert(model, "int8", Request(inputs=inputs, smoothing=0)).model
    assert distance(model, plain, inputs) > 0.5
    for kind_of_bytes in ("uint8", "int8"):
        found = convert(model, "int8", Request(inputs=inputs, activations=kind_of_bytes))  # type: ignore[arg-type]
        assert distance(model, found.model, inputs) < 0.03
    assert found.reports[0].changed >= 5
    assert len(found.reports[0].near_misses) == 2  # fc2 of each block, behind the activation

    smoothed = model.clone()
    layers = linears(smoothed)[:-1]
    seen = see(smoothed, {str(layer.x.name): -1 for layer in layers}, inputs)
    nodes = {layer.node for layer in layers}
    report = smooth(smoothed, nodes, seen, alpha=0.5, how="mse", kind="uint8", saturating=True)
    assert report.changed >= 5
    np.testing.assert_array_equal(rows(smoothed, inputs), rows(model, inputs))
    for layer in layers:
        again = see(smoothed, {str(layer.x.name): -1}, inputs[:3])[str(layer.x.name)]
        assert (again.peaks <= seen[str(layer.x.name)].peaks * (1 + 1e-5)).all()


@pytest.mark.parity
def test_norms_that_share_their_weights_are_smoothed_apart() -> None:
    model = graph().clone()
    norms = [node for node in model.graph if node.op_type == "LayerNormalization"]
    for i in (1, 2):
        norms[1].replace_input_with(i, norms[2].inputs[i])
    tied = rows(model, PIXELS)
    found = convert(model, "int8", Request(inputs=PIXELS))
    assert relative_distance(tied, rows(found.model, PIXELS)) < LIMIT
    assert norms[1].inputs[1] is norms[2].inputs[1]  # the model itself stays as it was


def test_weights_stored_as_fp16_and_a_norm_that_others_read() -> None:
    model = graph().clone()
    store_fp16(model)
    assert distance(model, convert(model, "int8", Request(inputs=PIXELS)).model) < 0.03
    layer = next(layer for layer in linears(model) if layer.norm is not None)
    sink = ir.node("Identity", [layer.x])
    model.graph.append(sink)
    model.graph.outputs.append(sink.outputs[0])
    sink.outputs[0].shape, sink.outputs[0].type, sink.outputs[0].name = layer.x.shape, layer.x.type, "seen"
    every = frozenset(
        one.name for one in linears(model)[:-1]
    )  # with two outputs most layers would be in a head
    report = convert(model, "int8", Request(inputs=PIXELS, layers=every)).reports[0]
    assert "its input is read by something else, too" in report.near_misses[0]


def test_layers_are_chosen_by_name() -> None:
    model = graph(hard=False)
    names = frozenset({"blocks.0.qkv.weight", "projection.weight"})
    found = convert(model, "int8", Request(inputs=PIXELS, layers=names))
    assert found.reports[1].changed == 2
    assert sum(miss.endswith("not asked for") for miss in found.reports[1].near_misses) == 8
    with pytest.raises(InputError, match=r"layers: the graph has no 'x'\. Of its 10 the first are blocks"):
        convert(model, "int8", Request(inputs=PIXELS, layers=frozenset({"x"})))
    with pytest.raises(InputError, match="needs calibration inputs, got none"):
        convert(model, "int8", Request())


def test_convolutions_become_a_chain_of_bytes(tmp_path: Path) -> None:
    model = convolutional()
    found = convert(model, "int8", Request(inputs=PIXELS))
    assert found.reports[1].changed == len(convolutions(model)) - 1 == 5
    operators = optimised(found.model, tmp_path)
    assert (operators["QLinearConv"], operators["QLinearAdd"]) == (5, 1)
    assert operators["Conv"] == 1  # the first, which reads pixels
    assert operators["Relu"] <= 2
    assert distance(model, found.model) < 0.05
    want = ReferenceEvaluator(ir.to_proto(found.model)).run(None, {"pixels": PIXELS[:2]})[0]  # type: ignore[arg-type]
    assert np.abs(rows(found.model, PIXELS[:2]) - want).max() < 0.02  # each byte may go either way at a half


@pytest.mark.skipif(not saturates(), reason="this processor sums products of bytes in 32 bits")
def test_trap_saturation_without_vnni() -> None:
    model = graph(hard=False)
    kept = distance(model, convert(model, "int8", Request(inputs=PIXELS, saturating=True)).model)
    lost = distance(model, convert(model, "int8", Request(inputs=PIXELS, saturating=False)).model)
    assert kept < 0.03
    assert lost > 3 * kept


def test_trap_every_operator_in_int8(tmp_path: Path) -> None:
    """What onnxruntime's own static quantiser makes by default."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Pictures(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"pixels": PIXELS[i : i + 1]} for i in range(8)]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    model = graph()
    ir.save(model, tmp_path / "float.onnx")
    quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", Pictures())
    found = relative_distance(rows(model, PIXELS), rows(ir.load(tmp_path / "int8.onnx"), PIXELS))
    assert not found < 0.5
    assert distance(model, convert(model, "int8", Request(inputs=PIXELS)).model) < 0.03


def test_trap_the_attention_operator_under_the_default_dynamic_quantiser(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    model = graph(flavour="op", hard=False)
    ir.save(model, tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx")  # says nothing
    with pytest.raises(Exception, match=r"INVALID_GRAPH|QAttention"):
        onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    for method in ("int8", "int8-dynamic"):
        assert distance(model, convert(model, method, Request(inputs=PIXELS)).model) < 0.03


def test_trap_quantised_residuals() -> None:
    source = clip_source()
    plant_stream_channel(source.model.image)
    tower = tower_of(source, "image", ("decomposed",))
    model = trace(tower, tower.flavours[0])[0]
    ours = convert(model, "int8", Request(inputs=PIXELS)).model
    assert distance(model, ours) < LIMIT
    spoilt = ours.clone()
    sums = [
        node.outputs[0]
        for node in spoilt.graph
        if node.op_type == "Add" and not any(array_of(value) is not None for value in node.inputs)
    ]
    assert len(sums) == 4
    seen = see(spoilt, {str(value.name): -1 for value in sums}, PIXELS)
    for value in sums:
        readers = [(node, i) for node in value.consumers() for i, x in enumerate(node.inputs) if x is value]
        up = through_bytes(spoilt.graph, value, byte_range(seen[str(value.name)], "min-max", "uint8"))
        for node, i in readers:
            node.replace_input_with(i, up)
    assert distance(model, spoilt) > 0.5


@pytest.mark.skipif(
    not Path(FLOOR or "-").is_dir(), reason="EDGECLIP_FLOOR names no folder; `make test` makes one"
)
def test_the_oldest_onnxruntime_agrees(tmp_path: Path) -> None:
    cases: dict[str, Converted] = {
        "static": convert(graph(hard=False), "int8", Request(inputs=PIXELS)),
        "symmetric": convert(graph(hard=False), "int8", Request(inputs=PIXELS, activations="int8")),
        "dynamic": convert(graph(hard=False), "int8-dynamic", Request()),
        # It has no QuantizeLinear of opset 23, so that static int8 is for the portable flavour there.
        "op": convert(graph(flavour="op", hard=False), "int8-dynamic", Request()),
        "convolutional": convert(convolutional(), "int8", Request(inputs=PIXELS)),
    }
    for name, case in cases.items():
        (tmp_path / f"{name}.onnx").write_bytes(ir.to_proto(case.model).SerializeToString())
        np.savez(tmp_path / f"{name}.npz", inputs=PIXELS[:8], want=rows(case.model, PIXELS[:8]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), VERSION],
        env={**os.environ, "PYTHONPATH": str(Path(FLOOR).resolve())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {name: float(worst) for name, worst in (line.split() for line in done.stdout.splitlines())}
    assert found.keys() == cases.keys()
    assert all(worst < (0.05 if name in ("dynamic", "op") else 5e-3) for name, worst in found.items()), found
