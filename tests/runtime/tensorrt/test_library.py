"""The two packages behind one face: what they lack is said in one line that names who has it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from edgeclip.errors import EngineError, MissingExtraError
from edgeclip.runtime.tensorrt.library import Library, load_library
from tests.runtime.tensorrt.surface import library


def test_a_lacking_feature_names_the_oldest_release_that_has_it() -> None:
    old = Library("tensorrt", None, "10.3.0.30")
    assert not old.has("same")
    with pytest.raises(
        EngineError,
        match=r"^tensorrt 10\.3\.0\.30: has not engines for every GPU .* tensorrt 10\.9 or newer\.$",
    ):
        old.need("same")
    with pytest.raises(EngineError, match=r"archs.* use tensorrt-rtx 1\.0 or newer"):
        old.need("archs")
    for newer in ("10.9.0", "10.16.1", "11.0.0"):
        Library("tensorrt", None, newer).need("same")


def test_two_digits_after_ten_are_above_one() -> None:
    assert Library("tensorrt", None, "10.16.1").number > Library("tensorrt", None, "10.9.0").number


@pytest.mark.parametrize("text", ["sm89", "SM_89", "8.9", "89", " sm89 "])
def test_a_gpu_may_be_written_as_people_do(text: str) -> None:
    assert library("tensorrt-rtx 1.7.1.116", []).read_archs([text, "sm_120", "sm89"]) == ("sm89", "sm120")


@pytest.mark.parametrize("text", ["sm87", "orin", "", "sm", "8.9.1", "sm890"])
def test_an_unknown_gpu_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(
        EngineError, match=r"cannot build for it\. Choose of sm75, sm80, sm86, sm89, sm120, sm121\."
    ):
        library("tensorrt-rtx 1.7.1.116", []).read_archs(["sm89", text])


def test_tensorrt_proper_builds_for_the_gpu_that_is_here() -> None:
    proper = library("tensorrt 11.4.0.106", [])
    assert proper.archs == ()
    assert proper.read_archs([]) == ()
    with pytest.raises(EngineError, match="GPUs that are not here"):
        proper.read_archs(["sm86"])


def test_the_real_library_knows_its_targets() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds without a GPU; not installed")
    assert {"sm80", "sm86", "sm89", "sm120"} <= set(load_library("tensorrt-rtx").archs)


def test_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"no such TensorRT\. Choose one of tensorrt, tensorrt-rtx"):
        load_library("trt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # an import of it then fails
    with pytest.raises(
        MissingExtraError, match=r"tensorrt is not installed .*apt-get install python3-libnvinfer"
    ):
        load_library("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1"))
    with pytest.raises(EngineError, match=r"tensorrt 8\.6\.1: too old. edgeclip needs 10\.3 or newer"):
        load_library("tensorrt")
