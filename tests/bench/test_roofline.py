"""Operations against PyTorch's own counter and numbers worked by hand; probes against numpy; shares against what was put in."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from benchmarks import make_probes
from edgeclip.bench import roofline
from edgeclip.bench.roofline import copying, operations, peaks, products, work
from edgeclip.bench.roofline.operations import Node
from edgeclip.bench.roofline.profile import _by_call, run_profiled, shares
from edgeclip.bench.roofline.work import Work, _split, count_work
from edgeclip.bench.settings import preset
from edgeclip.bundle import Axes, Bundle, open_bundle
from edgeclip.errors import EngineError, InputError
from edgeclip.runtime.engines import EngineOptions
from edgeclip.runtime.model import load
from tests.export.precision.graphs import graph, normal
from tests.runtime.tensorrt.stand_ins import forget, install
from tests.runtime.toy import DIM, SIDE, TEXT_WEIGHT, WORDS, make_bundle

OPTIONS = EngineOptions(threads=1)
PLAIN = replace(OPTIONS, prepacking=False)
FLOATS = np.float32


def profiled(folder: Path, model: ir.Model, feeds: dict[str, Any], **how: Any) -> list[Node]:
    onnx.save(ir.to_proto(model), folder / "g.onnx")
    return run_profiled(folder / "g.onnx", feeds, PLAIN, 1, **{"optimised": False, **how})[0]


def counted(folder: Path, model: ir.Model, feeds: dict[str, Any], **how: Any) -> int:
    return sum(map(operations.operations, profiled(folder, model, feeds, **how)))


def _torch(call: Callable[[Any], Any]) -> int:
    """What PyTorch counts."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(torch)
    return int(counter.get_total_flops())


# a graph, its constants, its inputs, operations worked by hand, and the same in PyTorch
CASES: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, ...]], int, Callable[[Any], Any]]] = {
    "matmul": (
        "(float[2,5,7] x) => (float[2,5,3] y) { y = MatMul(x, w) }", {"w": normal(7, 3)}, {"x": (2, 5, 7)},
        2 * 10 * 3 * 7, lambda t: t.zeros(2, 5, 7) @ t.zeros(7, 3),
    ),
    "two activations": (
        "(float[2,4,5,7] x, float[2,4,7,6] z) => (float[2,4,5,6] y) { y = MatMul(x, z) }", {},
        {"x": (2, 4, 5, 7), "z": (2, 4, 7, 6)}, 2 * 40 * 6 * 7, lambda t: t.zeros(2, 4, 5, 7) @ t.zeros(2, 4, 7, 6),
    ),
    "gemm": (
        "(float[5,7] x) => (float[5,3] y) { y = Gemm<transB=1>(x, w, b) }", {"w": normal(3, 7), "b": normal(3)}, {"x": (5, 7)},
        2 * 5 * 3 * 7, lambda t: t.nn.functional.linear(t.zeros(5, 7), t.zeros(3, 7), t.zeros(3)),
    ),
    "gemm of a transposed": (
        "(float[7,5] x) => (float[5,3] y) { y = Gemm<transA=1>(x, w) }", {"w": normal(7, 3)}, {"x": (7, 5)},
        2 * 5 * 3 * 7, lambda t: t.zeros(7, 5).T @ t.zeros(7, 3),
    ),
    "convolution": (
        "(float[2,6,9,8] x) => (float[2,4,4,3] y) { y = Conv<strides=[2,2], pads=[0,0,0,0], group=2>(x, w) }",
        {"w": normal(4, 3, 3, 3)}, {"x": (2, 6, 9, 8)},
        2 * 96 * 27, lambda t: t.nn.functional.conv2d(t.zeros(2, 6, 9, 8), t.zeros(4, 3, 3, 3), stride=2, groups=2),
    ),
    "attention": (
        "(float[2,3,5,8] q, float[2,3,7,8] k, float[2,3,7,8] v) => (float[2,3,5,8] y) { y = Attention(q, k, v) }", {},
        {"q": (2, 3, 5, 8), "k": (2, 3, 7, 8), "v": (2, 3, 7, 8)},
        2 * 2 * 6 * 5 * 7 * 8, lambda t: t.nn.functional.scaled_dot_product_attention(t.zeros(2, 3, 5, 8), t.zeros(2, 3, 7, 8), t.zeros(2, 3, 7, 8)),
    ),
    "attention of heads side by side": (
        "(float[2,5,24] q, float[2,7,24] k, float[2,7,24] v) => (float[2,5,24] y)"
        " { y = Attention<q_num_heads=3, kv_num_heads=3>(q, k, v) }", {},
        {"q": (2, 5, 24), "k": (2, 7, 24), "v": (2, 7, 24)},
        2 * 2 * 6 * 5 * 7 * 8, lambda t: t.nn.functional.scaled_dot_product_attention(t.zeros(2, 3, 5, 8), t.zeros(2, 3, 7, 8), t.zeros(2, 3, 7, 8)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operations_of_single_nodes(tmp_path: Path, name: str) -> None:
    body, constants, shapes, wanted, _ = CASES[name]
    model = graph(body, 23 if "Attention" in body else 20, **constants)
    feeds = {key: normal(*shape) for key, shape in shapes.items()}
    assert counted(tmp_path, model, feeds) == counted(tmp_path, model, feeds, optimised=True) == wanted


@pytest.mark.parity  # importing PyTorch takes seconds
def test_operations_worked_by_hand_are_those_that_torch_counts() -> None:
    for _, _, _, wanted, same in CASES.values():
        assert _torch(same) == wanted


@pytest.mark.parametrize(("shape", "kind"), [("openai", "image"), ("openai", "text"), ("resnet", "image")])
@pytest.mark.parity  # tracing takes seconds
def test_operations_of_whole_towers(tmp_path: Path, shape: str, kind: str) -> None:
    import torch

    from edgeclip.export.towers import tower_of
    from tests.export.traced import PIXELS, make_ids, traced

    source, flavours = traced(shape, kind)
    inputs = PIXELS[:2] if kind == "image" else make_ids(2)
    module = tower_of(source, kind).module  # type: ignore[arg-type]
    for model in flavours.values():
        feeds = {"pixels" if kind == "image" else "input_ids": inputs}
        found = counted(tmp_path, ir.from_proto(model), feeds)
        assert found == _torch(lambda _: module(torch.from_numpy(inputs))) > 0


QDQ = """(float[N,16] x) => (float[N,8] y) {
  a = QuantizeLinear(x, s, zu)
  b = DequantizeLinear(a, s, zu)
  c = DequantizeLinear(w, s, zi)
  d = MatMul(b, c)
  y = MatMul(d, v)
}"""
DYNAMIC = """(float[N,16] x) => (float[N,8] y) {
  a, s, z = DynamicQuantizeLinear(x)
  i = MatMulInteger(a, w, z, zi)
  f = Cast<to=1>(i)
  d = Mul(f, s)
  y = MatMul(d, v)
}"""
BLOCKS = """(float[N,16] x) => (float[N,8] y) {
  c = DequantizeLinear<axis=0, block_size=16>(w, s)
  d = MatMul(x, c)
  y = MatMul(d, v)
}"""
ROWS, FIRST, SECOND = 3, 2 * 3 * 16 * 32, 2 * 3 * 32 * 8


def lowered(kind: str) -> ir.Model:
    weights = np.random.default_rng(0).integers(-9, 9, (16, 32)).astype(np.int8)
    scale, zeros = {"s": np.float32(0.1)}, {"zi": np.int8(0), "zu": np.uint8(128)}
    given: dict[str, Any] = {"w": weights, "v": normal(32, 8)}
    if kind == "int8":
        return graph(QDQ, **given, **{k: np.asarray(v) for k, v in {**scale, **zeros}.items()})
    if kind == "int8 dynamic":
        return graph(DYNAMIC, **given, zi=np.asarray(zeros["zi"]))
    model = ir.to_proto(graph(BLOCKS.replace("(w, s)", "(x8, s)"), 21, **given, s=normal(1, 32), x8=weights))
    half = np.random.default_rng(0).integers(-8, 8, (16, 32))
    four = onnx.helper.make_tensor("x8", onnx.TensorProto.INT4, (16, 32), half.ravel().tolist())
    kept = [i for i in model.graph.initializer if i.name not in ("x8", "w")]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, four])
    return ir.from_proto(model)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("int8", {"int8": FIRST, "fp32": SECOND}),
        ("int8 dynamic", {"int8": FIRST, "fp32": SECOND}),
        ("int4", {"fp32": FIRST + SECOND}),  # four bits are how its weights are stored
    ],
)
def test_each_product_counts_in_the_precision_it_is_done_in(
    tmp_path: Path, kind: str, wanted: dict[str, int]
) -> None:
    model, feeds = lowered(kind), {"x": normal(ROWS, 16)}
    raw = profiled(tmp_path, model, feeds)
    total = sum(map(operations.operations, raw))
    assert total == FIRST + SECOND
    assert _split(total, profiled(tmp_path, model, feeds, optimised=True)) == wanted
    weights = {"int8": 16 * 32, "int8 dynamic": 16 * 32, "int4": 16 * 32 // 2 + 4 * 32}[kind]
    found = operations.weight_bytes(raw, widened=True)
    assert 0 <= found - (weights + 4 * 32 * 8) <= 40  # scales and zero points, some of them read twice


def test_a_table_counts_by_the_rows_that_are_read(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy")
    path = bundle.path("graphs/text-fp32.onnx")
    nodes = run_profiled(path, {"input_ids": np.ones((1, 5), np.int32)}, PLAIN, 1, optimised=False)[0]
    rows = 5 * DIM * 4
    assert rows < TEXT_WEIGHT.nbytes == WORDS * DIM * 4
    assert 0 <= operations.weight_bytes(nodes, widened=True) - rows <= 32


def test_weights_of_nano_are_read_in_the_width_they_are_kept_in() -> None:
    bundle = open_bundle("nano")
    variant = bundle.manifest.variants_of("image")[0]
    weights = onnx.load(bundle.path(variant.files[0])).graph.initializer
    stored = sum(onnx.numpy_helper.to_array(weight).nbytes for weight in weights)
    feeds = {"pixels": np.zeros((1, 3, 64, 64), FLOATS)}
    nodes = run_profiled(bundle.path(variant.files[0]), feeds, PLAIN, 1, optimised=False)[0]
    assert operations.weight_bytes(nodes, widened=False) == pytest.approx(stored, rel=0.005)
    assert operations.weight_bytes(nodes, widened=True) == pytest.approx(2 * stored, rel=0.005)


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "toy")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    feeds = {"pixels": normal(2, 3, SIDE, SIDE)}
    calls = run_profiled(bundle.path("graphs/image-fp32.onnx"), feeds, OPTIONS, 1, optimised=True, calls=3)
    assert [sum(map(operations.operations, nodes)) for nodes in calls] == [2 * 2 * 3 * SIDE**2 * DIM] * 3
    assert not list((tmp_path / "scratch").iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(EngineError, match=r"image-fp32.onnx: cannot be profiled \(.*gone"):
        run_profiled(bundle.path("graphs/image-fp32.onnx"), feeds, OPTIONS, 1, optimised=True)


def node(kind: str, us: float, **facts: Any) -> Node:
    return Node(**{"kind": kind, "types": (), "inputs": (), "output": (), "us": us, "parameter_bytes": 0, "output_bytes": 0, **facts})  # fmt: skip


def test_nodes_are_told_apart_by_call_and_from_what_surrounds_them() -> None:
    """Older releases write what came before and after a node too."""
    facts = {"op_name": "Relu", "input_type_shape": [{"float": [2]}], "output_type_shape": [{"float": [2]}], "parameter_size": "0", "output_size": "8"}  # fmt: skip

    def event(name: str, ts: int, dur: int = 1, cat: str = "Node") -> dict[str, Any]:
        return {"name": name, "ts": ts, "dur": dur, "cat": cat, "args": facts}

    first = [event("r_fence_before", 11), event("r_kernel_time", 12, 3), event("r_fence_after", 16)]
    second = [event("r_kernel_time", 33, 5), event("r_kernel_time", 45, 1)]
    runs = [event("model_run", 10, 10, "Session"), event("model_run", 30, 20, "Session")]
    found = _by_call([*second, *runs, *first, event("model_loading_uri", 0, 9, "Session")], Path("g"))
    assert [[node.us for node in nodes] for nodes in found] == [[3.0], [5.0, 1.0]]
    with pytest.raises(EngineError, match=r"g: onnxruntime's profile holds no nodes\."):
        _by_call(runs, Path("g"))


def test_shares_are_medians_over_the_calls() -> None:
    quiet = [node("MatMul", 60), node("Add", 20), node("MatMul", 20)]
    disturbed = [node("MatMul", 60), node("Add", 900), node("MatMul", 20)]
    assert shares([quiet, disturbed, quiet]) == {"MatMul": pytest.approx(0.8), "Add": pytest.approx(0.2)}


# --- probes


def test_the_probes_are_what_their_script_writes() -> None:
    wanted = {name: model.SerializeToString() for name, model in make_probes.build_all().items()}
    assert {path.name: path.read_bytes() for path in products.FOLDER.iterdir()} == wanted
    assert {probe.variant.files[0] for probe in products.all_probes()} == set(wanted)
    assert products.CHAIN == make_probes.CHAIN


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_probe_multiplies_by_the_constant_that_it_makes(precision: str) -> None:
    (probe,) = (
        p for p in products.all_probes() if (p.form, p.precision, p.side) == ("direct", precision, 512)
    )
    engine = products.open_variant("onnxruntime-cpu", products.probes_bundle(), probe.variant, OPTIONS)
    slot = engine.slot(2)
    numbers = np.arange(512 * 512, dtype=FLOATS)
    constant = (np.sin(numbers * numbers) * np.sqrt(2 / 512)).reshape(512, 512)
    slot.inputs["x"][:] = np.random.default_rng(0).integers(0, 128, (2, 512))  # no sum of two saturates
    given = slot.inputs["x"].astype(np.float64)
    if precision == "int8":
        step = np.float32(np.sqrt(2 / 512) / 127)
        constant, given = np.clip(np.round(constant / step), -128, 127), given - 128
    engine.submit(slot)
    wanted = given @ constant
    # sines of numbers up to 7e10 differ in places between libraries; a transposed constant is off by as much as the result
    assert np.linalg.norm(slot.outputs["y"] - wanted) < 0.02 * np.linalg.norm(wanted)
    assert np.linalg.norm(given @ constant.T - wanted) > np.linalg.norm(wanted)
    engine.close()


@pytest.mark.parity
def test_a_chain_neither_fades_nor_grows() -> None:
    """Zeros or infinities would let a GPU's clock rise."""
    for probe in products.all_probes():
        if probe.form == "inside" and probe.side == 1024 and probe.precision in ("fp32", "int8"):
            engine = products.open_variant(
                "onnxruntime-cpu", products.probes_bundle(), probe.variant, OPTIONS
            )
            slot = engine.slot(1)
            slot.inputs["x"][:] = 0.7
            engine.submit(slot)
            assert 0.3 < float(slot.outputs["y"].item()) < 10
            engine.close()


def test_products_grow_while_a_call_is_short() -> None:
    probes = [p for p in products.all_probes() if (p.form, p.precision) == ("direct", "fp32")]
    rates = {512: 40.0, 1024: 60.0, 2048: 58.0}
    assert products.climb(probes[::-1], lambda probe: rates[probe.side]) == 60
    slow = {512: 8.0, 1024: 9.0}  # at 9 GFLOP/s the next would take 1.9 s
    assert products.climb(probes[::-1], lambda probe: slow[probe.side]) == 9
    assert [(p.side, p.rows, p.operations) for p in probes if p.side == 512] == [(512, 512, 2 * 512**3)]


def test_precisions_are_mixed_by_the_time_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        peaks, "peak_gflops", lambda engine, options, precision: {"fp32": 50.0, "int8": 150.0}[precision]
    )
    engine: Any = SimpleNamespace(name="e", threads=1, provider="CPUExecutionProvider")
    found = peaks.Peaks().product(engine, OPTIONS, {"int8": 300, "fp32": 100})
    assert found == (pytest.approx(400 / (300 / 150 + 100 / 50)), [])
    assert peaks.Peaks().product(engine, OPTIONS, {"fp32": 0})[0] == 50


def test_a_peak_that_cannot_be_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = SimpleNamespace(
        name="onnxruntime-cpu", threads=1, provider="CPUExecutionProvider", overlaps=False
    )
    found = peaks.Peaks().product(engine, OPTIONS, {"bf16": 8})
    assert found == (0.0, ["peak in bf16: not measured: no product in bf16 is at hand for onnxruntime-cpu."])
    monkeypatch.setattr(copying, "available_memory", lambda: 64 << 20)
    value, why = peaks.Peaks().copy(engine, OPTIONS)
    assert (value, why) == (0.0, "copy: not measured: copy: expected 128 MB of free memory, got 16.")


def test_the_copy_is_larger_than_the_cache(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "32768K", "512K", "64K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}/size").write_text(size + "\n")
    assert copying.last_level_cache(tmp_path) == 32 << 20
    assert copying.last_level_cache(tmp_path / "none") == 0
    assert copying.buffer_bytes(32 << 20, None) == 128 << 20
    assert copying.buffer_bytes(0, None) == copying.LEAST_BYTES
    assert copying.buffer_bytes(32 << 20, 800 << 20) == 100 << 20
    assert copying.buffer_bytes(768 << 20, None) == copying.MOST_BYTES


def test_a_copy_counts_what_is_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 10**12, 10**9))  # each copy takes 1 s
    monkeypatch.setattr(copying, "clock", lambda: next(ticks))
    monkeypatch.setattr(copying, "buffer_bytes", lambda cache, free: copying.LEAST_BYTES)
    assert copying.copy_gb_per_s(2) == pytest.approx(2 * (64 << 20) / 1e9)


def test_the_copy_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = install(monkeypatch, memory=1 << 22)
    ticks = iter(range(0, 10**12, 10**9))
    monkeypatch.setattr(copying, "clock", lambda: next(ticks))
    monkeypatch.setattr(copying, "GPU_BYTES", 1 << 20)
    assert copying.gpu_copy_gb_per_s(0) == pytest.approx(2 * (1 << 20) / 1e9)
    assert (gpu.faults, gpu.live(), gpu.calls["cudaMemcpyAsync"]) == ([], 0, 4)
    forget()


# --- a whole roof


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest product, and three copies of 8 MB."""
    monkeypatch.setattr(products, "SECONDS", 0)
    monkeypatch.setattr(products, "LONGEST_S", 0)
    monkeypatch.setattr(copying, "SECONDS", 0)
    monkeypatch.setattr(copying, "LEAST_BYTES", 8 << 20)
    monkeypatch.setattr(copying, "CACHES", 0)


@pytest.mark.usefixtures("brief")
def test_roofs_of_the_towers_that_a_task_uses(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy")
    settings = preset("quick", task="embed", part_seconds=1e-9)
    with load(bundle, threads=1) as model:
        (image,) = roofline.measure_roofline(bundle, model, settings, 3)
        model.embed_texts(["a cat"])  # a text tower that is open, but not what this task runs
        assert [roof.tower for roof in roofline.measure_roofline(bundle, model, settings)] == ["image"]
        texts = ("a", "a cat", "a photo of a cat")
        (text,) = roofline.measure_roofline(bundle, model, replace(settings, task="search"), texts=texts)
    assert (image.variant, image.precision, image.batch) == ("image-fp32", "fp32", 3)
    assert image.operations == 2 * 3 * 3 * SIDE**2 * DIM
    assert image.weight_bytes == pytest.approx(4 * 3 * SIDE**2 * DIM, abs=8)
    assert image.gflops == pytest.approx(image.operations / image.ms / 1e6)
    assert image.share_of_peak == pytest.approx(image.gflops / image.peak_gflops)
    assert image.share_of_copy == pytest.approx(image.weight_bytes / image.copy_gb_per_s / 1e6 / image.ms)
    assert sum(image.by_operator.values()) == pytest.approx(1)
    assert "MatMul" in image.by_operator
    assert (text.operations, text.gflops, text.share_of_peak) == (0, 0, 0)
    assert "texts of 4 tokens" in text.notes


def test_a_share_above_its_roof_is_never_without_a_note() -> None:
    engine: Any = SimpleNamespace(provider="TensorRT", variant=SimpleNamespace(id="v"))
    done = Work({"fp16": 10**9}, 10**6, {})
    above = roofline.compose("image", engine, done, 1, 1.0, 900.0, 0.5, ())
    assert (above.gflops, above.share_of_peak, above.share_of_copy) == (1000, pytest.approx(10 / 9), 2)
    assert [note.split(":")[0] for note in above.notes] == ["above its peak", "faster than the copy"]
    assert above.bound == "memory"
    below = roofline.compose("image", engine, done, 1, 1.0, 2000.0, 0.0, ["copy: not measured: why"])
    assert (below.share_of_peak, below.share_of_copy, below.bound) == (0.5, 0, "compute")
    assert below.notes == ("copy: not measured: why",)


def test_weights_that_stay_in_the_cache_bind_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "last_level_cache", lambda: 32 << 20)
    engine: Any = SimpleNamespace(provider="CPUExecutionProvider", variant=SimpleNamespace(id="v"))
    done = Work({"fp32": 10**6}, 10**6, {"MatMul": 0.25, "Add": 0.75})
    found = roofline.compose("text", engine, done, 1, 0.1, 100.0, 10.0, ())
    assert (found.share_of_peak, found.share_of_copy, found.bound) == (0.1, pytest.approx(1), "compute")
    assert found.notes[0] == "its products take 25 % of the time, at 40 % of their peak"
    assert found.notes[1].startswith("the weights fit into the CPU's cache")


def test_what_was_made_on_this_machine_is_counted_on_its_sibling(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy")
    own = replace(bundle.manifest.variants_of("image")[0], id="image-fp16", axes=Axes("fp16"))
    engine: Any = SimpleNamespace(name="tensorrt", provider="TensorRT", threads=1, variant=own)
    feeds = {"pixels": normal(2, 3, SIDE, SIDE)}
    found = count_work(bundle, engine, OPTIONS, feeds)
    assert (dict(found.by_precision), dict(found.by_operator)) == (
        {own.computes_in: 2 * 2 * 3 * SIDE**2 * DIM},
        {},
    )
    assert found.notes == (
        "operations counted on image-fp32", "time by operator: tensorrt does not tell",
    )  # fmt: skip
    alone = Bundle(bundle.root, replace(bundle.manifest, variants=()), "d")
    with pytest.raises(
        EngineError, match=r"image-fp16: its operations cannot be counted\. The bundle has no"
    ):
        count_work(alone, engine, OPTIONS, feeds)
    bundle.path("graphs/image-fp32.onnx").write_bytes(b"no graph")
    with pytest.raises(
        EngineError, match=r"image-fp16: its operations cannot be counted\. .*cannot be profiled"
    ):
        count_work(bundle, engine, OPTIONS, feeds)


def test_no_room_for_a_second_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "toy")
    engine: Any = SimpleNamespace(
        name="onnxruntime-cpu",
        provider="CPUExecutionProvider",
        threads=1,
        variant=bundle.manifest.variants[0],
    )
    monkeypatch.setattr(work, "available_memory", lambda: 3 << 20)
    with pytest.raises(EngineError, match=r"profiling takes 24 MiB beside the open engine, 3 MiB are free\."):
        count_work(bundle, engine, OPTIONS, {"pixels": normal(1, 3, SIDE, SIDE)})


def test_no_such_task(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy")
    with load(bundle) as model, pytest.raises(InputError, match="task 'segment': no such task"):
        roofline.measure_roofline(bundle, model, preset("quick", task="segment"))


@pytest.mark.gpu
def test_a_roof_on_a_gpu() -> None:
    bundle = open_bundle("nano")
    with load(bundle, "onnxruntime-cuda") as model:
        (roof,) = roofline.measure_roofline(bundle, model, preset("quick", task="embed"), 8)
    assert roof.operations == 8 * 213_878_784
    assert roof.by_operator == {}
    assert 100 < roof.peak_gflops < 1e6
    assert roof.copy_gb_per_s > 20 or any(note.startswith("copy: not measured") for note in roof.notes)
