"""The engine seam: slots, values, refusals, and what really runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.bundle import Bundle, Port, Variant
from edgeclip.errors import EngineError, MissingExtraError
from edgeclip.runtime import threads
from edgeclip.runtime.engines import ENGINES, EngineOptions, onnxruntime_session, open_engine, run
from tests.runtime.toy import DIM, SIDE, image_reference, make_bundle, text_reference


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "toy")


def variant(bundle: Bundle, tower: str) -> Variant:
    return bundle.manifest.variants_of(tower)[0]


def opened(bundle: Bundle, tower: str = "image", **changes: Any) -> Any:
    chosen = replace(variant(bundle, tower), **changes)
    return open_engine("onnxruntime-cpu", bundle.path(chosen.files[0]), chosen, EngineOptions(threads=1))


def test_slots_are_written_and_read_in_place(bundle: Bundle) -> None:
    engine = opened(bundle)
    random = np.random.default_rng(1)
    for batch in (1, 3, 8):
        slot = engine.slot(batch)
        assert slot.inputs["pixels"].shape == (batch, 3, SIDE, SIDE)
        outputs = slot.outputs["embeddings"]
        for _ in range(2):  # the second call must not see the first one's values
            slot.inputs["pixels"][:] = random.normal(size=slot.inputs["pixels"].shape)
            engine.submit(slot)
            engine.wait(slot)
            assert slot.outputs["embeddings"] is outputs
            np.testing.assert_allclose(outputs, image_reference(slot.inputs["pixels"]), rtol=0, atol=1e-6)


def test_two_slots_do_not_share_arrays(bundle: Bundle) -> None:
    engine = opened(bundle)
    first, second = engine.slot(1), engine.slot(1)
    first.inputs["pixels"][:] = 1
    second.inputs["pixels"][:] = np.arange(3 * SIDE * SIDE).reshape(1, 3, SIDE, SIDE) % 7
    run(engine, first)
    before = first.outputs["embeddings"].copy()
    run(engine, second)
    np.testing.assert_array_equal(first.outputs["embeddings"], before)
    assert np.abs(second.outputs["embeddings"] - before).max() > 0.01


def test_other_symbolic_sizes(bundle: Bundle) -> None:
    engine = opened(bundle, "text")
    for length in (1, 5, 12):
        slot = engine.slot(2, {"L": length})
        slot.inputs["input_ids"][:] = np.arange(2 * length).reshape(2, length) % 9 + 1
        np.testing.assert_allclose(
            run(engine, slot)["embeddings"], text_reference(slot.inputs["input_ids"]), rtol=0, atol=1e-6
        )
    with pytest.raises(EngineError, match="no value for its size 'L'"):
        engine.slot(2)


def test_failing_runs_are_one_line(bundle: Bundle) -> None:
    engine = opened(bundle, "text")
    slot = engine.slot(1, {"L": 3})
    slot.inputs["input_ids"][:] = 10_000  # outside the table
    with pytest.raises(EngineError, match=r"text-fp32: onnxruntime failed to run it \(.*idx.*\)") as refusal:
        run(engine, slot)
    assert "\n" not in str(refusal.value)


def test_an_engine_that_was_closed_meanwhile_says_so(bundle: Bundle) -> None:
    engine = opened(bundle, "image")
    slot = engine.slot(1)
    engine.close()
    for use in (lambda: run(engine, slot), lambda: engine.slot(1)):
        with pytest.raises(EngineError, match="image-fp32: was closed while it was in use"):
            use()


def test_graphs_that_do_not_open(bundle: Bundle, tmp_path: Path) -> None:
    for content in (b"", b"no graph", bundle.path("graphs/image-fp32.onnx").read_bytes()[:5000]):
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(EngineError, match=r"x\.onnx: onnxruntime cannot open it") as refusal:
            open_engine("onnxruntime-cpu", tmp_path / "x.onnx", variant(bundle, "image"))
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"inputs": (Port("pixels", "float32", ("N", 3, 64, 64)),)},
            "input 'pixels': the manifest says float32",
        ),
        (
            {"inputs": (Port("pixels", "uint8", ("N", 3, SIDE, SIDE)),)},
            "input 'pixels': the manifest says uint8",
        ),
        ({"inputs": (Port("image", "float32", ("N", 3, SIDE, SIDE)),)}, "input 'image'"),
        ({"inputs": (Port("pixels", "float32", ("N", 3, "S", SIDE)),)}, "input 'pixels'"),
        ({"inputs": ()}, r"the graph has inputs \['pixels'\], the manifest lists \[\]"),
        ({"outputs": (Port("embeddings", "float32", ("N", DIM + 1)),)}, "output 'embeddings'"),
        ({"outputs": (Port("embeddings", "float32", ("N", DIM, 1)),)}, "output 'embeddings'"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(
    bundle: Bundle, changes: Any, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        opened(bundle, **changes)


def test_refusals_list_what_exists_and_what_to_install(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = variant(bundle, "image")
    with pytest.raises(EngineError, match="Choose one of onnxruntime-cpu, onnxruntime-cuda"):
        open_engine("openvino", bundle.root, chosen)
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(
            MissingExtraError, match=r"no CUDA provider\. Run: .*pip install 'edgeclip\[gpu\]'"
        ):
            open_engine("onnxruntime-cuda", bundle.path(chosen.files[0]), chosen)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    for name, extra in (("onnxruntime-cpu", "cpu"), ("onnxruntime-cuda", "gpu")):
        with pytest.raises(MissingExtraError, match=rf"pip install 'edgeclip\[{extra}\]'"):
            open_engine(name, bundle.path(chosen.files[0]), chosen)
    assert [name for name in ENGINES if name.startswith("onnxruntime")] == [
        "onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"
    ]  # fmt: skip


class FellBack:
    """A session as onnxruntime gives it where CUDA could not start: no error, another provider."""

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_a_silent_fall_back_is_an_error_unless_allowed(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = variant(bundle, "image")
    check = onnxruntime_session._check_provider
    with pytest.raises(
        EngineError, match="asked for CUDAExecutionProvider, onnxruntime fell back to CPUExecutionProvider"
    ):
        check(FellBack(), chosen, "CUDAExecutionProvider", EngineOptions())
    check(FellBack(), chosen, "CUDAExecutionProvider", EngineOptions(allow_fallback=True))
    assert "runs on CPUExecutionProvider instead of CUDAExecutionProvider" in caplog.text


def test_versions_compare_as_numbers() -> None:
    version = onnxruntime_session.version_of
    assert version("1.9") < version("1.23") < version("1.23.2") < version("1.32.0.dev1")


def test_usable_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1, 4, 5}, raising=False)
    monkeypatch.setattr(threads, "_CPU", tmp_path)
    monkeypatch.setattr(threads, "_CGROUP", tmp_path)
    assert threads.usable_cores() == 4  # nothing is known of siblings or quotas
    for cpu, siblings in ((0, "0,4"), (4, "0,4"), (1, "1,5"), (5, "1,5")):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(siblings + "\n")
    assert threads.usable_cores() == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert threads.usable_cores() == 2
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert threads.usable_cores() == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert threads.usable_cores() == 2
