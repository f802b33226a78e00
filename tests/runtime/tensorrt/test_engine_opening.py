"""How a TensorRT engine is opened, proved, refused and closed: on stand-ins."""

from __future__ import annotations

import logging
import os
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclip
from edgeclip.bundle import Bundle, Port
from edgeclip.errors import CheckFailed, EngineError, MissingExtraError
from edgeclip.runtime import cuda
from edgeclip.runtime.engines import (
    EngineOptions,
    local_variants,
    open_variant,
    run,
    tensorrt,
    tensorrt_place,
)
from edgeclip.runtime.tensorrt.library import load_library
from edgeclip.runtime.tensorrt.store import store_of
from tests.runtime.tensorrt.cuda_stand_in import StandIn
from tests.runtime.tensorrt.running import check, filled, image, opened, text
from tests.runtime.tensorrt.stand_ins import IMAGE, TEXT, build, forget, install
from tests.runtime.tensorrt.tensorrt_stand_in import Engine, RuntimeCache
from tests.runtime.toy import make_bundle, picture

pytestmark = pytest.mark.usefixtures("cache")


def test_weights_come_back_from_the_graph(gpu: StandIn, toy: Bundle, tmp_path: Path) -> None:
    own = make_bundle(tmp_path / "own")
    build(own, image(own), IMAGE, changes={"strip_weights": True}, stripped=True)
    engine = open_variant("tensorrt", own, image(own), EngineOptions())
    run(engine, slot := filled(engine, 3))
    check(slot)
    engine.close()
    graph = own.path(image(own).files[0])
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with pytest.raises(EngineError, match=r"image-fp32\.onnx: not what the engine was built from"):
        open_variant("tensorrt", own, image(own), EngineOptions())


def test_a_plan_whose_weights_cannot_be_filled_in(gpu: StandIn, toy: Bundle) -> None:
    other = toy.path(text(toy).files[0]).read_bytes()
    build(toy, image(toy), IMAGE, changes={"strip_weights": True}, stripped=True, graph=other)
    with pytest.raises(EngineError, match=r"image-fp32: tensorrt 10\.3\.0\.30 cannot fill in its weights"):
        opened(toy)


def test_an_engine_of_an_earlier_release_runs_by_that_ones_library(
    gpu: StandIn, toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(toy, image(toy), IMAGE, changes={"version_compatible": True})
    module = load_library("tensorrt").module
    module.__version__ = "10.9.0.34"
    with pytest.raises(
        EngineError, match=r"built by 10\.3\.0\.30 for later releases, .*'lean_runtime': .* or build again\."
    ):
        opened(toy)
    loaded: list[str] = []

    def load(runtime: Any, path: str) -> Any:
        loaded.append(path)
        return runtime if path == "lean.so" else None

    monkeypatch.setattr(type(module.Runtime(None)), "load_runtime", load, raising=False)
    with pytest.raises(EngineError, match=r"but other\.so is not its lean runtime"):
        opened(toy, provider_options={"lean_runtime": "other.so"})
    engine = opened(toy, provider_options={"lean_runtime": "lean.so"})
    run(engine, slot := filled(engine, 3))
    check(slot)
    engine.close()
    assert loaded == ["other.so", "lean.so"]


# --- proof


class TestProof:
    """At its first opening on a device an engine is inspected and the golden inputs are replayed."""

    @pytest.fixture
    def proofs(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        prove = pytest.importorskip("edgeclip.runtime.tensorrt.prove")
        made: list[str] = []
        plain = prove.prove
        monkeypatch.setattr(prove, "prove", lambda *a, **k: (made.append(a[1].id), plain(*a, **k))[1])
        return made

    def test_once_and_written_down(self, gpu: StandIn, proofs: list[str]) -> None:
        nano = edgeclip.open_bundle("nano")
        variant = nano.manifest.variants_of("image")[0]
        build(nano, variant, IMAGE, proven=False)
        for _ in range(2):
            open_variant("tensorrt", nano, variant, EngineOptions()).close()
        assert proofs == [variant.id]
        (record,) = store_of(nano, EngineOptions()).records()
        assert record.fidelity is not None
        assert record.fidelity.samples > 1
        assert 0 < record.fidelity.relative_distance < 0.01
        assert record.engine is not None
        assert record.engine.layers == 1

    def test_again_on_another_gpu(
        self, gpu: StandIn, proofs: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nano = edgeclip.open_bundle("nano")
        variant = nano.manifest.variants_of("image")[0]
        build(nano, variant, IMAGE, proven=False, changes={"hardware_compatible": "ampere+"})
        open_variant("tensorrt", nano, variant, EngineOptions()).close()
        (first,) = store_of(nano, EngineOptions()).records()
        here = replace(cuda.devices()[0], name="Another GPU")
        monkeypatch.setattr(cuda, "devices", lambda: [here])
        for _ in range(2):
            open_variant("tensorrt", nano, variant, EngineOptions()).close()
        (second,) = store_of(nano, EngineOptions()).records()
        assert proofs == [variant.id] * 2
        assert second.proved_on == first.proved_on.replace(first.device.name, "Another GPU")  # type: ignore[union-attr]

    def test_an_inspector_that_tells_nothing_is_told_of(
        self,
        gpu: StandIn,
        proofs: list[str],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """What the engine gives is measured all the same."""
        nano = edgeclip.open_bundle("nano")
        variant = nano.manifest.variants_of("image")[0]
        build(nano, variant, IMAGE, proven=False)
        monkeypatch.setattr(Engine, "create_engine_inspector", lambda self: None)
        open_variant("tensorrt", nano, variant, EngineOptions()).close()
        (record,) = store_of(nano, EngineOptions()).records()
        assert (record.engine, record.fidelity is not None, proofs) == (None, True, [variant.id])
        assert f"{variant.id}: is not inspected: the engine's inspector: there is none" in caplog.text

    def test_an_engine_that_gives_something_else_is_refused(
        self, gpu: StandIn, proofs: list[str], tmp_path: Path
    ) -> None:
        import onnx

        nano = edgeclip.open_bundle("nano")
        variant = nano.manifest.variants_of("image")[0]
        model = onnx.load(nano.path(variant.files[0]))
        for weight in model.graph.initializer:
            if weight.dims and len(weight.dims) > 1:
                values = onnx.numpy_helper.to_array(weight) * np.float32(1.5)
                weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        build(nano, variant, IMAGE, proven=False, graph=model.SerializeToString())
        with pytest.raises(CheckFailed, match=variant.id) as error:
            open_variant("tensorrt", nano, variant, EngineOptions())
        assert len(proofs) == 1
        assert tensorrt_place._places[0].scratch.size == 256, "closed, though the error still holds it"
        del error
        (record,) = store_of(nano, EngineOptions()).records()
        assert record.fidelity is None


# --- refusals


def test_without_a_gpu(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus=0)
    with pytest.raises(EngineError, match=r"^no NVIDIA GPU that CUDA can use: .* See `edgeclip doctor`"):
        opened(toy)
    forget()


def test_without_the_library(toy: Bundle, gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match="tensorrt is not installed"):
        opened(toy)


def test_nothing_was_built(gpu: StandIn, toy: Bundle) -> None:
    assert local_variants("tensorrt", toy, EngineOptions()) == []
    with pytest.raises(
        EngineError, match=r"no engine of image-fp32 for tensorrt.*Run: edgeclip build .* --target tensorrt"
    ):
        opened(toy)
    with pytest.raises(EngineError, match=r"GPU 3: not found; there is 0 \(NVIDIA Stand-in 0\)"):
        opened(toy, device=3)


def test_local_variants_are_found_without_a_gpu(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE)
    calls = dict(gpu.calls)
    assert [variant.id for variant in local_variants("tensorrt", toy, EngineOptions())] == ["image-fp32"]
    assert local_variants("tensorrt-rtx", toy, EngineOptions()) == []
    assert gpu.calls == calls, "asks CUDA nothing: the process may still fork"


def test_built_when_asked(gpu: StandIn, toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip("edgeclip.runtime.tensorrt.api")
    asked = []

    def build_engines(bundle: Bundle, target: str, settings: Any) -> None:
        asked.append((target, settings.variants, settings.device))
        build(toy, image(toy), IMAGE)

    monkeypatch.setattr(api, "build_engines", build_engines)
    for _ in range(2):
        opened(toy, build=True).close()
    assert asked == [("tensorrt", ("image-fp32",), 0)]


@pytest.mark.parametrize(
    "options",
    [
        {"provider_options": {"trt_fp16_enable": "1"}},
        {"provider_options": {"cuda_graph": "yes"}},
        {"session_options": {"session.intra_op.allow_spinning": "0"}},
    ],
)
def test_options_of_others(gpu: StandIn, toy: Bundle, options: Any) -> None:
    with pytest.raises(
        EngineError, match=r"tensorrt: no option '.*'\. It has cuda_graph, 0 or 1, and lean_runtime, a path\."
    ):
        opened(toy, **options)


def test_a_plan_that_does_not_open(gpu: StandIn, toy: Bundle) -> None:
    record = build(toy, image(toy), IMAGE)
    store_of(toy, EngineOptions()).put(record, b"no plan at all")
    with pytest.raises(EngineError) as error:
        opened(toy)
    assert re.fullmatch(
        r"image-fp32: tensorrt 10\.3\.0\.30 cannot open it: magic tag does not match\. Build it again\.",
        str(error.value),
    )


@pytest.mark.parametrize("kind", ["Runtime", "Refitter", "OnnxParserRefitter"])
def test_a_library_that_makes_nothing(
    gpu: StandIn, toy: Bundle, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As without a driver that it knows: C++ gives a null pointer, pybind makes a TypeError of it."""

    def null(*_: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    build(toy, image(toy), IMAGE, changes={"strip_weights": True}, stripped=True)
    monkeypatch.setattr(load_library("tensorrt").module, kind, null)
    with pytest.raises(EngineError, match=rf"^tensorrt 10\.3\.0\.30: its {kind} cannot start\. .*driver\.$"):
        opened(toy)


def test_a_profile_that_is_not_taken(gpu: StandIn, toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    build(toy, image(toy), IMAGE)
    engine = opened(toy)
    engine.engine.num_optimization_profiles = 0
    with pytest.raises(EngineError, match=r"^image-fp32: TensorRT does not take profile 0 \(Error in set"):
        engine.slot(1)
    engine.close()


def test_kernels_that_the_library_does_not_give_are_not_kept(
    gpu: StandIn, toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(toy, image(toy), IMAGE, "tensorrt-rtx")
    monkeypatch.setattr(RuntimeCache, "serialize", lambda self: None)
    opened(toy, "tensorrt-rtx").close()
    assert not (store_of(toy, EngineOptions()).folder / "runtime").exists()


def test_a_plan_that_was_changed_is_never_deserialised(gpu: StandIn, toy: Bundle) -> None:
    record = build(toy, image(toy), IMAGE)
    path = store_of(toy, EngineOptions()).plan_path(record)
    path.write_bytes(path.read_bytes().replace(b"1000", b"1001"))
    with pytest.raises(EngineError, match="changed"):
        opened(toy)
    import sys

    assert sys.modules["tensorrt"].engines == []


def test_an_engine_of_other_ports(gpu: StandIn, toy: Bundle) -> None:
    """The trap of int64 ids: 32-bit numbers in a 64-bit buffer are garbage without a word."""
    variant = text(toy)
    build(toy, variant, TEXT)
    changed = replace(variant, inputs=(Port("input_ids", "int64", ("N", "L")),))
    engine = open_variant("tensorrt", toy, variant, EngineOptions())
    with pytest.raises(
        EngineError, match=r"input 'input_ids': the manifest says int64 \('N', 'L'\), the engine has int32"
    ):
        tensorrt.TensorRt(engine._library, changed, EngineOptions(), engine.engine, None)
    changed = replace(variant, outputs=(Port("embeddings", "float32", ("N", 9)),))
    with pytest.raises(
        EngineError, match=r"output 'embeddings': .*\('N', 9\), the engine has float \(-1, 8\)"
    ):
        tensorrt.TensorRt(engine._library, changed, EngineOptions(), engine.engine, None)
    changed = replace(variant, outputs=(*variant.outputs, Port("scores", "float32", ("N",))))
    with pytest.raises(
        EngineError, match=r"the engine has \['embeddings', 'input_ids'\], the manifest lists"
    ):
        tensorrt.TensorRt(engine._library, changed, EngineOptions(), engine.engine, None)
    engine.close()


def test_no_room_on_the_gpu(monkeypatch: pytest.MonkeyPatch, toy: Bundle) -> None:
    install(monkeypatch, memory=1 << 20)
    build(toy, image(toy), IMAGE, scratch=1 << 30)
    with pytest.raises(EngineError, match=r"GPU 0: no room for 1073\.7 MB, 1\.0 of 1\.0 MB are free"):
        opened(toy)
    forget()


def test_it_fails_while_running(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE)
    engine = opened(toy)
    slot = filled(engine, 4)
    lane = slot.binding[0]
    gpu.streams[engine._place.stream.handle].device = 5  # as after a reset
    with pytest.raises(EngineError, match=r"^image-fp32: .*invalid handle"):
        engine.submit(slot)
    gpu.streams[engine._place.stream.handle].device = 0
    lane._context.engine.stripped = True
    with pytest.raises(EngineError, match=r"^image-fp32: TensorRT failed to run it\.$"):
        engine.submit(slot)
    engine.close()


def test_closed(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE)
    engine = opened(toy)
    slot = filled(engine, 4)
    engine.submit(slot)
    engine.close()  # waits
    engine.wait(slot)
    check(slot)
    for use in (lambda: engine.submit(slot), lambda: engine.slot(1)):
        with pytest.raises(EngineError, match=r"image-fp32: this engine was closed"):
            use()


def test_a_forked_child_opens_none(gpu: StandIn, toy: Bundle) -> None:
    build(toy, image(toy), IMAGE)
    with edgeclip.load(toy, engine="tensorrt", threads=1) as model:
        row = model.embed_images(picture(1))
        held = threading.Event()

        def hold() -> None:  # locks that a thread of the parent holds stay locked in the child
            with tensorrt_place._lock, tensorrt_place._places[0].lock:
                held.set()
                release.wait()

        release = threading.Event()
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            try:
                model.embed_images(picture(1))
            except EngineError as error:
                os.write(writing, str(error).encode())
            os._exit(0)
        os.waitpid(child, 0)
        release.set()
        thread.join()
        assert re.match(
            r"CUDA was used by process \d+ before it forked this one", os.read(reading, 1000).decode()
        )
        np.testing.assert_array_equal(model.embed_images(picture(1)), row)
    os.close(reading)
    os.close(writing)


def test_errors_are_logged_once_by_nobody(
    gpu: StandIn, toy: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """What TensorRT said stands in the error, and not on the screen as well."""
    caplog.set_level(logging.WARNING)
    record = build(toy, image(toy), IMAGE)
    store_of(toy, EngineOptions()).put(record, b"no plan")
    with pytest.raises(EngineError):
        opened(toy)
    assert caplog.text == ""
