"""Engines are built by the real TensorRT-RTX, which needs no GPU for it; what only TensorRT proper has is seen on stand-ins."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto

from edgeclip.bundle import Axes, Bundle, Port, Variant
from edgeclip.errors import EngineError
from edgeclip.runtime.tensorrt import builder
from edgeclip.runtime.tensorrt.builder import LOW_MEMORY_WORKSPACE, Built, build, check_options
from edgeclip.runtime.tensorrt.library import Library, load_library
from edgeclip.runtime.tensorrt.profiles import profiles_for
from edgeclip.runtime.tensorrt.record import BuildOptions
from tests.runtime.tensorrt import graphs_of
from tests.runtime.tensorrt.surface import RELEASES, library
from tests.runtime.toy import DIM

N = {"N": (1, 2, 4)}
PIXELS = Variant("v", "image", Axes(), ("a",), (Port("pixels", "float32", ("N", 3, 32, 32)),), ())
SM86 = BuildOptions((N,), archs=("sm86",))


@pytest.fixture(scope="module")
def rtx() -> Library:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds without a GPU; not installed")
    return load_library("tensorrt-rtx")


def of(toy: Bundle, tower: str) -> tuple[Path, Variant]:
    variant = toy.manifest.variants_of(tower)[0]
    return toy.path(variant.files[0]), variant


def test_an_engine_for_two_gpus(rtx: Library, toy: Bundle) -> None:
    heard: list[tuple[str, float]] = []
    built = build(
        rtx, *of(toy, "image"), replace(SM86, archs=("8.6", "sm89")), tell=lambda *said: heard.append(said)
    )
    gc.collect()
    assert built.plan.format == "B"
    assert bytes(built.plan[:4]) != b"\\0" * 4
    assert built.network.products == {"fp32": 1}
    assert built.timing_cache is None
    assert 0 < built.seconds < 60
    shares = [share for _, share in heard]
    assert shares == sorted(shares)
    assert heard[0] == ("Building engine", 0.0)
    assert heard[-1] == ("done", 1.0)
    assert len({phase for phase, _ in heard}) > 4
    one = build(rtx, *of(toy, "image"), SM86)
    assert hashlib.sha256(one.plan).digest() != hashlib.sha256(built.plan).digest()
    assert len(built.plan) > len(one.plan)


def test_texts_of_every_length_in_two_profiles(rtx: Library, toy: Bundle) -> None:
    path, variant = of(toy, "text")
    profiles = profiles_for(variant, toy.manifest, [(1, 1, 1), (2, 8, 32)])
    assert profiles[1] == {"N": (2, 8, 32), "L": (1, 12, 12)}
    assert build(rtx, path, variant, BuildOptions(profiles, ("sm86",))).network.products == {}


def test_a_head_that_takes_prompts(rtx: Library, toy: Bundle, tmp_path: Path) -> None:
    image, variant = of(toy, "image")
    head = graphs_of.with_prompts(image, tmp_path / "head.onnx", variant, DIM)
    profiles = profiles_for(head, toy.manifest, [(1, 8, 32)])
    assert profiles == ({"N": (1, 8, 32), "B": (1, 1, 32), "P": (1, 64, 1024)},)
    assert len(build(rtx, tmp_path / "head.onnx", head, BuildOptions(profiles, ("sm86",))).plan) > 1000


def test_attention_is_fused_where_it_has_a_kernel_and_written_out_elsewhere(
    rtx: Library, tmp_path: Path
) -> None:
    half = graphs_of.attention(tmp_path / "half.onnx")
    built = build(rtx, tmp_path / "half.onnx", half, SM86)
    assert (built.network.attention, built.network.unfused) == (1, 0)
    assert built.network.products == {"fp16": 1}
    full = graphs_of.attention(tmp_path / "full.onnx", TensorProto.FLOAT)
    built = build(rtx, tmp_path / "full.onnx", full, SM86)
    assert (built.network.attention, built.network.unfused) == (1, 1)


def test_attention_without_a_kernel_is_refused_in_one_line(
    rtx: Library, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "write_out_attention", lambda module, network: 0)
    full = graphs_of.attention(tmp_path / "full.onnx", TensorProto.FLOAT)
    wanted = r"full\.onnx: tensorrt-rtx \S+ built no engine\. Attention .* dedicated kernel\. Build the variant with decomposed"
    with pytest.raises(EngineError, match=wanted):
        build(rtx, tmp_path / "full.onnx", full, SM86)
    assert capfd.readouterr() == ("", "")  # the compiler writes "Internal Error: ..." to stderr by itself


def test_weights_beside_the_graph(rtx: Library, tmp_path: Path) -> None:
    variant = graphs_of.outside(tmp_path / "a.onnx")
    assert build(rtx, tmp_path / "a.onnx", variant, SM86).network.weights == {"fp32": 64 * 64}
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(
        EngineError,
        match=r"a\.onnx: .*cannot read it\. .*initializer: weight\. The file beside .* missing or damaged",
    ):
        build(rtx, tmp_path / "a.onnx", variant, SM86)


def test_graphs_that_cannot_be_read(rtx: Library, toy: Bundle, tmp_path: Path) -> None:
    _, variant = of(toy, "image")
    with pytest.raises(EngineError, match=r"nothing\.onnx: no such file"):
        build(rtx, tmp_path / "nothing.onnx", variant, SM86)
    (tmp_path / "text.onnx").write_text("a letter")
    with pytest.raises(
        EngineError, match=r"text\.onnx: tensorrt-rtx \S+ cannot read it\. .*Is it an ONNX file\?"
    ):
        build(rtx, tmp_path / "text.onnx", variant, SM86)
    odd = graphs_of.unsupported(tmp_path / "odd.onnx")
    with pytest.raises(
        EngineError, match=r"cannot read it\. node quantise_me \(DynamicQuantizeLinear\): .* Use a variant"
    ):
        build(rtx, tmp_path / "odd.onnx", odd, SM86)
    text_path, _ = of(toy, "text")
    with pytest.raises(
        EngineError, match=r"expected the inputs .*pixels.* got .*input_ids.* This is another graph"
    ):
        build(rtx, text_path, variant, SM86)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"archs": ("sm86", "sm87")}, r"arch 'sm87': .*Choose of sm75"),
        ({"archs": ("sm75",)}, r"Turing.* Leave sm75 out, or build in fp16"),
        ({"workspace": 1 << 16}, r"within workspace limit.* Give a larger --workspace"),
        ({"strip_weights": True}, r"needs an NVIDIA GPU and its driver"),
        ({"version_compatible": True}, r"has not engines that outlive a release\. Leave it out, or use tensorrt"),
        ({"hardware_compatible": "ampere+"}, r"has not engines for Ampere and newer"),
        ({"hardware_compatible": "same"}, r"has not engines for every GPU of one compute capability.*10\.9"),
        ({"level": 6}, r"level 6: expected 0 "),
        ({"workspace": -1}, r"workspace -1: expected bytes"),
        ({"profiles": ()}, r"image-fp32: needs a profile with N, got none"),
        ({"profiles": (N, {"N": (1, 2, 3), "L": (1, 2, 3)})}, r"profile 1: expected sizes of N, got N, L"),
        ({"profiles": ({"N": (4, 2, 8)},)}, r"profile 0: N is 4:2:8, expected least:best:most"),
        ({"profiles": ({"N": (0, 2, 8)},)}, r"N is 0:2:8"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_met(rtx: Library, toy: Bundle, change: dict[str, Any], message: str) -> None:
    if "strip_weights" in change and Path("/dev/nvidiactl").exists():
        pytest.skip("a GPU is here")
    with pytest.raises(EngineError, match=message) as failure:
        build(rtx, *of(toy, "image"), replace(SM86, **change))
    assert "\n" not in str(failure.value)


def test_what_the_listener_raises_ends_the_build(rtx: Library, toy: Bundle) -> None:
    heard = []

    def tell(phase: str, share: float) -> None:
        heard.append(phase)
        raise OSError("the bar is broken")

    with pytest.raises(OSError, match="the bar is broken"):
        build(rtx, *of(toy, "image"), SM86, tell=tell)
    assert len(heard) == 1
    assert len(build(rtx, *of(toy, "image"), SM86).plan) > 1000  # the next is not hindered


INTERRUPTED = """
import signal, sys, time
from pathlib import Path
from edgeclip.bundle import open_bundle
from edgeclip.runtime.tensorrt.builder import build
from edgeclip.runtime.tensorrt.library import load_library
from edgeclip.runtime.tensorrt.record import BuildOptions
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
bundle = open_bundle(sys.argv[1])
variant = bundle.manifest.variants[0]
def tell(phase, share):
    print(phase, share, flush=True)
    time.sleep(0.02)
try:
    build(load_library("tensorrt-rtx"), bundle.path(variant.files[0]), variant, BuildOptions(({"N": (1, 2, 4)},), ("sm86",)), tell=tell)
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_stops_a_build(rtx: Library, toy: Bundle) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(toy.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        assert first.startswith("Building engine"), child.communicate()
        os.kill(child.pid, signal.SIGINT)
        started = time.monotonic()
        out, err = child.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert (child.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "stopped"
    assert "done" not in out


# --- releases that are not here, as stand-ins with their attributes


def recorded(release: str, options: BuildOptions, **known: Any) -> tuple[Built, list[Any]]:
    """A build by a stand-in, and all that was asked of it."""
    log: list[Any] = []
    fake = library(release, log, **known)
    return build(fake, Path(__file__), PIXELS, options), log


ALL = BuildOptions((N,), workspace=5, level=4, hardware_compatible="ampere+", low_memory=True)


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_has_what_the_builder_asks_of_it(release: str) -> None:
    proper = release.startswith("tensorrt ")
    options = ALL if proper else replace(ALL, hardware_compatible="", archs=("sm86", "sm89"))
    for change in ({"strip_weights": True}, {"version_compatible": True} if proper else {"tf32": True}):
        built, log = recorded(release, replace(options, **change))
        assert bytes(built.plan) == b"plan"
        assert built.timing_cache == (b"measured" if proper else None)
        assert ("builder_optimization_level", 4) in log
        assert ("set_memory_pool_limit", "WORKSPACE", 5) in log
        assert any(
            call[:2] == ("set_shape", "pixels")
            and call[2:] == ([1, 3, 32, 32], [2, 3, 32, 32], [4, 3, 32, 32])
            for call in log
        )
        assert ("profiling_verbosity", "DETAILED") in log
        if proper:
            assert ("hardware_compatibility_level", "AMPERE_PLUS") in log
        else:
            assert not any("timing" in call[0] for call in log)  # touching it asks for a GPU
            assert ("set_compute_capability", "SM89", 1) in log


def flags(log: list[Any]) -> set[str]:
    return {
        ("-" if call[0] == "clear_flag" else "") + call[1]
        for call in log
        if call[0] in ("set_flag", "clear_flag")
    }


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, {"-TF32"}),
        ({"tf32": True}, set()),
        ({"strip_weights": True}, {"-TF32", "STRIP_PLAN", "REFIT_IDENTICAL"}),
        ({"version_compatible": True}, {"-TF32", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}),
    ],
)
def test_flags(change: dict[str, Any], wanted: set[str]) -> None:
    assert flags(recorded("tensorrt 11.4.0.106", BuildOptions((N,), **change))[1]) == wanted


def test_little_memory_bounds_what_was_not_chosen() -> None:
    _, log = recorded("tensorrt 10.3.0", BuildOptions((N,), low_memory=True))
    assert ("set_memory_pool_limit", "WORKSPACE", LOW_MEMORY_WORKSPACE) in log
    assert ("builder_optimization_level", 2) in log
    assert ("max_aux_streams", 0) in log
    _, log = recorded("tensorrt 10.3.0", BuildOptions((N,)))
    assert not {"set_memory_pool_limit", "builder_optimization_level", "max_aux_streams"} & {
        call[0] for call in log
    }


def test_a_timing_cache_is_lent_and_one_of_another_gpu_passed_over() -> None:
    asked: list[Any] = []

    def lend(cache: Any, mismatch: bool) -> bool:
        asked.append((cache, mismatch))
        return cache != b"of another GPU"

    def run(stored: bytes) -> None:
        fake = library("tensorrt 10.3.0", [], create_timing_cache=lambda blob: blob, set_timing_cache=lend)
        build(fake, Path(__file__), PIXELS, BuildOptions((N,)), timing_cache=stored)

    run(b"of this GPU")
    assert asked == [(b"of this GPU", False)]
    run(b"of another GPU")
    assert asked[1:] == [(b"of another GPU", False), (b"", False)]


def test_what_excludes_each_other_and_what_a_release_lacks() -> None:
    with pytest.raises(EngineError, match=r"version_compatible and strip_weights: .* Choose one"):
        recorded("tensorrt 10.16.1.11", BuildOptions((N,), version_compatible=True, strip_weights=True))
    with pytest.raises(EngineError, match=r"tensorrt 10\.3\.0: has not .* tensorrt 10\.9 or newer"):
        recorded("tensorrt 10.3.0", BuildOptions((N,), hardware_compatible="same"))
    with pytest.raises(EngineError, match="GPUs that are not here"):
        recorded("tensorrt 10.3.0", BuildOptions((N,), archs=("sm87",)))


def test_tensorrt_without_a_gpu_says_so() -> None:
    fake = library("tensorrt 10.16.1.11", [])

    def null(logger: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    fake.module.Builder = null
    with pytest.raises(
        EngineError,
        match=r"tensorrt 10\.16\.1\.11: its Builder cannot start\. .* This needs an NVIDIA GPU and its driver\.",
    ):
        build(fake, Path(__file__), PIXELS, BuildOptions((N,)))
    check_options(fake, PIXELS, BuildOptions((N,)))


def test_a_gpu_is_made_current_in_the_thread_that_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    @contextmanager
    def on(number: int) -> Iterator[None]:
        seen.append((f"on {number}", threading.get_ident()))
        yield
        seen.append((f"off {number}", threading.get_ident()))

    def built(*_: Any) -> bytes:
        seen.append(("built", threading.get_ident()))
        return b"plan"

    monkeypatch.setattr(builder.cuda, "on", on)
    fake = library("tensorrt 10.3.0", [], build_serialized_network=built)
    build(fake, Path(__file__), PIXELS, BuildOptions((N,)), device=1)
    assert [what for what, _ in seen] == ["on 1", "built", "off 1"]
    assert len({thread for _, thread in seen} | {threading.get_ident()}) == 2
