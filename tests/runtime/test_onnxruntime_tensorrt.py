"""onnxruntime's TensorRT providers without a GPU: the calls are executed on the CPU by a stand-in for onnxruntime that notes what it is asked."""

from __future__ import annotations

import ctypes
import logging
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeclip.bundle import Bundle, Fidelity
from edgeclip.errors import EngineError, MissingExtraError
from edgeclip.runtime.engines import EngineOptions, nvidia, open_variant, run
from edgeclip.runtime.engines import onnxruntime_session as session_module
from edgeclip.runtime.engines import onnxruntime_tensorrt as tensorrt
from edgeclip.runtime.engines import onnxruntime_tensorrt_rtx as rtx
from tests.mutants import broken
from tests.runtime.toy import SIDE, image_reference, make_bundle

onnxruntime = pytest.importorskip("onnxruntime")


class Options(onnxruntime.SessionOptions):  # type: ignore[misc,name-defined]
    """Notes a plug-in's devices, which the real one would refuse."""

    devices: Any = None

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        self.devices = (devices, options)


class Fake(ModuleType):
    """onnxruntime as on a machine with a GPU; its sessions compute on the CPU."""

    def __init__(self) -> None:
        super().__init__("onnxruntime")
        self.__file__ = "/nowhere/onnxruntime/__init__.py"
        self.__version__, self.cuda_version = "1.31.1", "13.0"
        self.SessionOptions, self.ExecutionMode = Options, onnxruntime.ExecutionMode
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=self.buffer)
        self.providers = [tensorrt.PROVIDER, "CPUExecutionProvider"]
        self.opened: list[SimpleNamespace] = []
        self.places: list[tuple[Any, ...]] = []
        self.runs: list[tuple[str, dict[str, str]]] = []  # thread, run options
        self.pieces: list[tuple[str, int]] = [(tensorrt.PROVIDER, 3)]
        self.devices: list[Any] = []
        self.registered: list[tuple[str, str]] = []

    def get_available_providers(self) -> list[str]:
        return self.providers

    def buffer(self, array: Any, *place: Any) -> Any:
        self.places.append(place)
        return onnxruntime.OrtValue.ortvalue_from_numpy(array.copy())

    def RunOptions(self) -> Any:
        fake, real = self, onnxruntime.RunOptions()
        real_entries: dict[str, str] = {}

        class Noted:
            def add_run_config_entry(self, key: str, value: str) -> None:
                real_entries[key] = value
                real.add_run_config_entry(key, value)

            def used(self) -> Any:
                fake.runs.append((threading.current_thread().name, real_entries))
                return real

        return Noted()

    def InferenceSession(self, path: str, settings: Any, providers: Any, enable_fallback: int) -> Any:
        fake = self
        name, options = providers[0] if providers else (rtx.PROVIDER, settings.devices[1])
        entries = {
            key: settings.get_session_config_entry(f"session.{key}")
            for key in ("disable_cpu_ep_fallback", "record_ep_graph_assignment_info")
        }
        fake.opened.append(
            SimpleNamespace(provider=name, options=options, entries=entries, settings=settings)
        )
        assert enable_fallback == 0
        if folder := options.get("trt_engine_cache_path"):
            place = Path(folder, "engine_sm86.engine")
            fake.opened[-1].found = place.read_text() if place.exists() else None
            place.write_text("plan")

        class Session(onnxruntime.InferenceSession):  # type: ignore[misc,name-defined]
            def get_providers(self) -> list[str]:
                return [name]

            def get_provider_graph_assignment_info(self) -> list[Any]:
                return [SimpleNamespace(ep_name=n, get_nodes=lambda k=k: [None] * k) for n, k in fake.pieces]

            def run_with_iobinding(self, binding: Any, options: Any) -> None:
                super().run_with_iobinding(binding, options.used())

        return Session(path, providers=["CPUExecutionProvider"])

    def get_ep_devices(self) -> list[Any]:
        return self.devices

    def register_execution_provider_library(self, name: str, path: str) -> None:
        self.registered.append((name, path))
        self.devices += [SimpleNamespace(ep_name="CPUExecutionProvider"), SimpleNamespace(ep_name=name)]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "toy")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    """A machine with a GPU, onnxruntime-gpu, TensorRT 10.16 and the plug-in."""
    found = Fake()
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", found)
    monkeypatch.setattr(nvidia, "driver_cuda", lambda: (13, 0))
    monkeypatch.setattr(tensorrt, "_major", lambda module: 10)
    monkeypatch.setattr(tensorrt, "load_tensorrt", lambda major: f"{major}.16.0")
    plugin = ModuleType(rtx.PACKAGE)
    vars(plugin)["get_library_path"] = lambda: "/plugin.so"
    monkeypatch.setitem(__import__("sys").modules, rtx.PACKAGE, plugin)
    return found


def opened(bundle: Bundle, name: str, tower: str = "image", **options: Any) -> Any:
    return open_variant(name, bundle, bundle.manifest.variants_of(tower)[0], EngineOptions(**options))


def pixels(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def test_what_onnxruntime_is_asked_for(bundle: Bundle, fake: Fake) -> None:
    engine = opened(bundle, tensorrt.NAME, "text", device=1)
    asked = fake.opened[0]
    assert (engine.name, engine.provider, engine.overlaps) == (tensorrt.NAME, tensorrt.PROVIDER, True)
    assert asked.entries == {"disable_cpu_ep_fallback": "1", "record_ep_graph_assignment_info": "1"}
    folder = asked.options["trt_engine_cache_path"]
    assert asked.options == {
        "device_id": "1",
        "trt_profile_min_shapes": "input_ids:1x1",
        "trt_profile_opt_shapes": "input_ids:8x12",
        "trt_profile_max_shapes": "input_ids:32x12",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
    }
    assert Path(folder).is_relative_to(bundle.cache / "engines")
    assert Path(folder).stat().st_mode & 0o077 == 0
    engine.close()


@pytest.mark.parametrize("name", [tensorrt.NAME, rtx.NAME])
def test_calls_are_made_by_one_thread_and_give_the_values(name: str, bundle: Bundle, fake: Fake) -> None:
    fake.pieces = [(tensorrt.PROVIDER if name == tensorrt.NAME else rtx.PROVIDER, 3)]
    engine = opened(bundle, name)
    slots = [engine.slot(count) for count in (3, 1, 32)]
    for seed, slot in enumerate(slots):
        slot.inputs["pixels"][:] = pixels(len(slot.inputs["pixels"]), seed)
        engine.submit(slot)
    for slot in slots:
        engine.wait(slot)
        want = image_reference(slot.inputs["pixels"])
        np.testing.assert_allclose(slot.outputs["embeddings"], want, rtol=0, atol=1e-6)
    slots[0].inputs["pixels"][:] = pixels(3, 9)  # a slot that is used again gives the new values
    want = image_reference(slots[0].inputs["pixels"])
    np.testing.assert_allclose(run(engine, slots[0])["embeddings"], want, rtol=0, atol=1e-6)
    assert {thread.partition("_")[0] for thread, _ in fake.runs} == {name}
    assert len({thread for thread, _ in fake.runs}) == 1
    assert set(fake.places) == {("cuda", 0) if name == tensorrt.NAME else ("gpu", 0, 0x10DE)}
    engine.close()
    engine.close()


def test_sizes_outside_the_profile(bundle: Bundle, fake: Fake) -> None:
    engine = opened(bundle, tensorrt.NAME)
    with pytest.raises(
        EngineError, match=r"image-fp32: N = 33, onnxruntime-tensorrt was opened for 1 to 32\."
    ):
        engine.slot(33)
    own = {"trt_profile_min_shapes": f"pixels:1x3x{SIDE}x{SIDE}", "trt_profile_max_shapes": "..."}
    wide = opened(bundle, tensorrt.NAME, provider_options=own)  # then onnxruntime itself says what it takes
    assert fake.opened[1].options["trt_profile_max_shapes"] == "..."
    assert len(wide.slot(64).inputs["pixels"]) == 64


def test_errors_of_the_thread_reach_the_caller(bundle: Bundle, fake: Fake) -> None:
    engine = opened(bundle, tensorrt.NAME, "text")
    slot = engine.slot(1, {"L": 3})
    slot.inputs["input_ids"][:] = 10_000  # outside the table
    engine.submit(slot)
    with pytest.raises(EngineError, match=r"text-fp32: onnxruntime failed to run it \(.*idx.*\)"):
        engine.wait(slot)


def test_a_cuda_graph_belongs_to_one_slot(bundle: Bundle, fake: Fake) -> None:
    """It holds the addresses of the slot's buffers: shared by two slots, the second would get the first one's result."""
    engine = opened(bundle, tensorrt.NAME, provider_options={"trt_cuda_graph_enable": "1"})
    first, second = engine.slot(2), engine.slot(2)
    for slot in (first, second, first):
        run(engine, slot)
    assert [options["gpu_graph_id"] for _, options in fake.runs] == ["1", "2", "1"]
    fake.runs.clear()
    plain = opened(bundle, tensorrt.NAME)
    run(plain, plain.slot(1))
    assert fake.runs[0][1] == {}


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([("CPUExecutionProvider", 1), (tensorrt.PROVIDER, 2)], "takes 2 of 3 operators, in 1 pieces"),
        ([(tensorrt.PROVIDER, 2), (tensorrt.PROVIDER, 1)], "takes 3 of 3 operators, in 2 pieces"),
        ([("CPUExecutionProvider", 3)], "takes 0 of 3 operators, in 0 pieces"),
    ],
)
def test_a_graph_is_taken_whole_or_refused(
    pieces: list[tuple[str, int]], message: str, bundle: Bundle, fake: Fake
) -> None:
    fake.pieces = pieces
    with pytest.raises(EngineError, match=f"image-fp32: {tensorrt.PROVIDER} {message}; want all in one"):
        opened(bundle, tensorrt.NAME)


def test_pieces_are_read_back_from_a_real_session(bundle: Bundle) -> None:
    """What the check goes by is what onnxruntime itself reports; the CPU takes each operator by itself."""
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    chosen = bundle.manifest.variants_of("text")[0]
    path = str(bundle.path(chosen.files[0]))
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    found = session_module.assigned(session)
    if not hasattr(session, "get_provider_graph_assignment_info"):
        assert found is None  # before 1.24
        return
    assert set(found or ()) == {("CPUExecutionProvider", 1)}
    with pytest.raises(EngineError, match=rf"text-fp32: X takes 0 of {len(found)} operators"):
        session_module.check_whole(found, chosen, "X")
    with pytest.raises(EngineError, match=f"in {len(found)} pieces"):
        session_module.check_whole(found, chosen, "CPUExecutionProvider")


def test_operators_that_the_cpu_computes_are_told(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """With onnxruntime-gpu 1.24 and CUDA it is each Attention; here what the CPU runs is seen from another provider."""
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")

    def said(tower: str, provider: str) -> list[str]:
        (chosen,) = bundle.manifest.variants_of(tower)
        path = str(bundle.path(chosen.files[0]))
        session = onnxruntime.InferenceSession(path, settings, providers=[session_module.CPU])
        if not hasattr(session, "get_provider_graph_assignment_info"):
            pytest.skip("onnxruntime tells from 1.24 on")
        caplog.clear()
        session_module.tell_of_strays(session, chosen, provider)
        return caplog.messages

    assert said("image", session_module.CPU) == []
    assert said("image", "CUDAExecutionProvider") == [
        "image-fp32: the CPU runs 1 MatMul, for which this onnxruntime has no kernel in CUDAExecutionProvider. "
        "Use a newer onnxruntime, or another variant"
    ]
    assert not caplog.records[0].counted  # type: ignore[attr-defined]
    assert said("text", "CUDAExecutionProvider") == [], "no operator there computes"


def test_the_cache_is_sealed_and_named_after_all_that_matters(
    bundle: Bundle, fake: Fake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def folder(**options: Any) -> Path:
        opened(bundle, tensorrt.NAME, **options).close()
        return Path(fake.opened[-1].options["trt_engine_cache_path"])

    first = folder()
    assert folder() == first
    assert fake.opened[-1].found == "plan"
    (first / "engine_sm86.engine").write_text("evil")
    assert folder() == first
    assert fake.opened[-1].found is None, "what was changed must be gone before onnxruntime looks"
    assert "emptied" in caplog.text
    (first / "other.engine").write_text("evil")
    folder()
    assert not (first / "other.engine").exists()

    assert folder(device=1) != first
    assert folder(provider_options={"trt_builder_optimization_level": "5"}) != first
    monkeypatch.setattr(tensorrt, "load_tensorrt", lambda major: "10.16.1")
    assert folder() != first
    chosen = bundle.manifest.variants[0]
    files = dict(bundle.manifest.files)
    files[chosen.files[0]] = replace(
        files[chosen.files[0]], sha256="0" * 64
    )  # other weights, which onnxruntime's own key leaves out
    other = replace(bundle, manifest=replace(bundle.manifest, files=files))
    assert tensorrt._name(other, chosen, []) != tensorrt._name(bundle, chosen, [])
    forgets = broken(tensorrt._name, "[digests, *facts]", "facts")
    assert forgets(other, chosen, []) == forgets(bundle, chosen, [])


@pytest.mark.parametrize("name", [tensorrt.NAME, rtx.NAME])
def test_no_engine_of_anybody_reaches_the_providers(bundle: Bundle, fake: Fake, name: str) -> None:
    """They deserialise what a graph holds, and what lies in a folder that they are pointed to."""
    for key in ("trt_engine_cache_path", "trt_timing_cache_path", "nv_runtime_cache_path"):
        with pytest.raises(EngineError, match=rf"^{name}: {key}: engines are code.*Leave it out\.$"):
            opened(bundle, name, provider_options={key: "/tmp"})
    variant = bundle.manifest.variants_of("image")[0]
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path := bundle.path(variant.files[0]))
    model.graph.node[0].CopyFrom(
        onnx.helper.make_node(
            "EPContext", ["pixels"], ["x"], domain="com.microsoft", ep_cache_context=b"evil"
        )
    )
    path.write_bytes(model.SerializeToString())
    entry = replace(bundle.manifest.files[variant.files[0]], size=path.stat().st_size)
    files = {**bundle.manifest.files, variant.files[0]: entry}
    other = replace(bundle, manifest=replace(bundle.manifest, files=files))
    with pytest.raises(
        EngineError, match=r"\.onnx: holds an engine that was built elsewhere \(operator EPContext\)"
    ):
        opened(other, name)
    assert fake.opened == []


def test_a_folder_of_engines_in_which_others_may_write_is_refused(
    bundle: Bundle, fake: Fake, tmp_path: Path
) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines").chmod(0o777)
    with pytest.raises(EngineError, match=r"engines: other users may write in it \(mode 0777\)"):
        opened(bundle, tensorrt.NAME, engines=tmp_path / "engines")
    assert fake.opened == []


def test_graphs_that_this_tensorrt_does_not_read(bundle: Bundle, fake: Fake) -> None:
    variant = bundle.manifest.variants_of("image")[0]
    for oldest, message in (
        ("10.17", "is read from TensorRT 10.17 on, this is 10.16.0"),
        ("none", "does not read"),
    ):
        with pytest.raises(EngineError, match=message):
            tensorrt.check_reads(replace(variant, requires={"tensorrt": oldest}), "10.16.0")
    tensorrt.check_reads(replace(variant, requires={"tensorrt": "10.14"}), "10.16.0")
    for version in ("10.3.0", "10.16.0", "11.4.0"):  # numbers, not text: 10.16 is newer than 10.3
        tensorrt.check_reads(replace(variant, requires={"tensorrt": "10.3"}), version)
    tensorrt.check_reads(variant, "8.6")


def test_what_is_missing_is_named(bundle: Bundle, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "driver_cuda", lambda: (12, 4))
    with pytest.raises(
        EngineError, match=r"built with CUDA 13\.0, the driver serves up to 12\.4\. .*cudnn\]<1\.27'"
    ):
        opened(bundle, tensorrt.NAME)
    monkeypatch.setattr(nvidia, "driver_cuda", lambda: None)
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        opened(bundle, tensorrt.NAME)
    fake.providers = ["CPUExecutionProvider"]
    with pytest.raises(MissingExtraError, match=r"no TensorRT provider\. Run: pip uninstall -y onnxruntime"):
        opened(bundle, tensorrt.NAME)


def test_missing_cuda_libraries_are_named_not_printed(
    bundle: Bundle,
    fake: Fake,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """onnxruntime prints them on stdout, which may hold JSON; those that nobody was linked with do not matter."""

    def preload() -> None:
        for name in ("libcublas.so.13", "libnotused.so.1"):
            print(f"Failed to load {name}: {name}: cannot open shared object file: No such file or directory")

    vars(fake)["preload_dlls"] = preload
    fake.__file__ = str(tmp_path / "__init__.py")
    library = tmp_path / "capi/libonnxruntime_providers_tensorrt.so"
    library.parent.mkdir()
    library.write_bytes(b"\x7fELF\0libcublas.so.13\0libnvinfer.so.10\0")
    with pytest.raises(
        MissingExtraError, match=r"libcublas\.so\.13 not found\. Run: pip install .*\[cuda,cudnn\]'$"
    ):
        opened(bundle, tensorrt.NAME)
    assert opened(bundle, tensorrt.NAME, allow_fallback=True)
    library.write_bytes(b"\x7fELF\0libcudart.so.13\0")
    assert opened(bundle, tensorrt.NAME)
    assert capsys.readouterr().out == ""


def test_a_place_in_the_source_is_no_part_of_the_message() -> None:
    place = "/onnxruntime_src/onnxruntime/python/state.cc:729 void onnxruntime::f(Options&, const T&) "
    line = session_module.first_line(RuntimeError(f"{place}Please install (all) of it.\nmore"))
    assert line == "Please install (all) of it."
    assert session_module.first_line(ValueError("plain (as it is)")) == "plain (as it is)"


def test_majors_are_read_from_the_library(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    place = tmp_path / "capi/libonnxruntime_providers_tensorrt.so"
    fake.__file__ = str(tmp_path / "__init__.py")
    with pytest.raises(MissingExtraError, match=r"onnxruntime 1\.31\.1 has no TensorRT provider"):
        tensorrt._major(fake)
    place.parent.mkdir()
    place.write_bytes(b"\x7fELF\0libcudart.so.13\0libnvinfer_plugin.so.9\0libnvinfer.so.10\0libcudnn.so.9\0")
    assert tensorrt._major(fake) == 10
    assert (nvidia.linked(place, "cudart"), nvidia.linked(place, "absent")) == (13, None)


def test_tensorrt_is_loaded_from_its_package_or_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(path: str, mode: int = 0) -> Any:
        if "missing" in path:
            raise OSError(f"{path}: cannot open shared object file")
        loaded.append(path)
        return SimpleNamespace(getInferLibVersion=lambda: 101601)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(nvidia, "find_spec", lambda name: None)
    assert nvidia.load_tensorrt(10) == "10.16.1"
    assert loaded == ["libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"]
    (tmp_path / "libnvinfer.so.10").touch()
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(nvidia, "find_spec", lambda name: package)
    nvidia.load_tensorrt(10)
    assert loaded[3:5] == [str(tmp_path / "libnvinfer.so.10"), "libnvinfer_plugin.so.10"]
    monkeypatch.setattr(nvidia, "TENSORRT", ("missing",))
    with pytest.raises(
        MissingExtraError, match=r"TensorRT 10 is not installed .*pip install 'tensorrt==10\.\*'"
    ):
        nvidia.load_tensorrt(10)


def test_driver_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        number, code = 12080, 0

        def cuDriverGetVersion(self, place: Any) -> int:
            place._obj.value = self.number
            return self.code

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert nvidia.driver_cuda() == (12, 8)
    monkeypatch.setattr(Driver, "code", 1)
    assert nvidia.driver_cuda() is None

    def absent(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert nvidia.driver_cuda() is None


def test_the_plug_in_is_registered_once_and_its_device_chosen(
    bundle: Bundle, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.pieces = [(rtx.PROVIDER, 3)]
    for _ in range(2):
        engine = opened(bundle, rtx.NAME)
    assert fake.registered == [(rtx.PROVIDER, "/plugin.so")]
    devices, options = fake.opened[-1].settings.devices
    assert [device.ep_name for device in devices] == [rtx.PROVIDER]
    assert options["nv_profile_max_shapes"] == f"pixels:32x3x{SIDE}x{SIDE}"
    assert not any("trt_" in key for key in options)
    assert (engine.name, engine.provider) == (rtx.NAME, rtx.PROVIDER)
    with pytest.raises(EngineError, match=r"serves 1 GPUs of this machine, want number 1\. It needs .* 8\.6"):
        opened(bundle, rtx.NAME, device=1)
    fake.devices.clear()
    monkeypatch.setitem(__import__("sys").modules, rtx.PACKAGE, None)
    with pytest.raises(MissingExtraError, match=r"Run: pip install .* onnxruntime-ep-nv-tensorrt-rtx"):
        opened(bundle, rtx.NAME)


def test_a_plug_in_without_a_driver_is_one_line(
    bundle: Bundle, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, path: str) -> None:
        raise RuntimeError("libcuda.so.1: cannot open shared object file\nmore")

    monkeypatch.setattr(fake, "register_execution_provider_library", fail)
    with pytest.raises(
        EngineError, match=r"does not start \(libcuda\.so\.1: .* file\)\. It needs .* CUDA 13"
    ) as said:
        opened(bundle, rtx.NAME)
    assert "\n" not in str(said.value)


def test_present_asks_for_a_device_first(monkeypatch: pytest.MonkeyPatch, fake: Fake, tmp_path: Path) -> None:
    monkeypatch.setattr(nvidia, "NODES", (str(tmp_path / "none"),))
    assert not tensorrt.present()
    assert not rtx.present()
    monkeypatch.setattr(nvidia, "NODES", (str(tmp_path),))
    assert tensorrt.present()
    fake.providers = []
    assert not tensorrt.present()
    monkeypatch.setattr(rtx, "find_spec", lambda name: None)
    assert not rtx.present()


@pytest.mark.parametrize("name", [tensorrt.NAME, rtx.NAME])
def test_fp32_may_be_less(
    name: str, bundle: Bundle, fake: Fake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake.pieces = [(tensorrt.PROVIDER if name == tensorrt.NAME else rtx.PROVIDER, 3)]
    monkeypatch.delenv(tensorrt.TF32, raising=False)
    opened(bundle, name).close()
    (note,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert note.getMessage().startswith(
        f"image-fp32: {name} may round its fp32 products to 10 bits (TF32); NVIDIA_TF32"
    )
    assert vars(note)["counted"] is False
    caplog.clear()
    monkeypatch.setenv(tensorrt.TF32, "0")
    opened(bundle, name).close()
    image, *others = bundle.manifest.variants
    half = replace(
        image,
        axes=replace(image.axes, precision="fp16"),
        fidelity=Fidelity(8, 0, 1, 1, 1, 0, 1, against=image.id),
    )
    monkeypatch.delenv(tensorrt.TF32)
    open_variant(name, replace(bundle, manifest=replace(bundle.manifest, variants=(half, *others))), half)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
