"""Which engine a tower runs on: the order, what did not open, and who is told. Engines that do not open are stand-ins."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgeclip
from edgeclip.bundle import Bundle
from edgeclip.cli import run
from edgeclip.errors import EdgeClipError, EngineError, InputError, MissingExtraError
from edgeclip.runtime import engines
from edgeclip.runtime.engines import onnxruntime_cpu
from edgeclip.runtime.model import Model
from edgeclip.runtime.towers import Tower
from tests.mutants import broken
from tests.runtime.toy import make_bundle, picture

NOT_BUILT = EngineError("no engine was built. Run: edgeclip build toy --target npu")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "toy")


Register = Callable[..., None]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Add an engine, in front of the order: it fails with an error, for the towers whose variants are named, or works."""

    def add(name: str, error: EdgeClipError | None = None, *, only: str = "", present: bool = True) -> None:
        def open_engine(path: Path, variant: Any, options: Any) -> Any:
            if error is not None and only in variant.id:
                raise error
            engine = onnxruntime_cpu.open_engine(path, variant, options)
            engine.name = name
            return engine

        module = ModuleType(f"stand_in_{name}")
        vars(module).update(present=lambda: present, open_engine=open_engine)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(engines, "ENGINES", {**engines.ENGINES, name: module.__name__})
        monkeypatch.setattr(engines, "ORDER", (name, "onnxruntime-cpu"))
        monkeypatch.setattr(engines, "has_gpu", lambda: True)

    return add


def used(model: Model) -> dict[str, dict[str, str]]:
    model.embed_images(picture(1))
    model.embed_texts("a cat")
    return model.info().towers


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_fall_back_is_told_once_for_each_tower(
    bundle: Bundle, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    register("npu", NOT_BUILT)
    with edgeclip.load(bundle) as model:
        towers = used(model)
        for tower in model._towers:
            tower.close()
        used(model)  # opens them again
    assert {name: tower["engine"] for name, tower in towers.items()} == dict.fromkeys(
        ("image", "text"), "onnxruntime-cpu"
    )
    assert towers["image"]["fell_back"] == f"npu: {NOT_BUILT}"
    assert notes(caplog) == [f"{t} tower: runs on onnxruntime-cpu; npu: {NOT_BUILT}" for t in towers]
    assert all("\n" not in note for note in notes(caplog))


def test_one_tower_may_fall_back_alone(
    bundle: Bundle, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    register("npu", NOT_BUILT, only="text")
    with edgeclip.load(bundle) as model:
        towers = used(model)
    assert [towers[name]["engine"] for name in ("image", "text")] == ["npu", "onnxruntime-cpu"]
    assert "fell_back" not in towers["image"]
    assert len(notes(caplog)) == 1


def test_no_noise_where_nothing_better_is_present(
    bundle: Bundle, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    register("npu", NOT_BUILT, present=False)
    with edgeclip.load(bundle) as model:
        assert "fell_back" not in used(model)["image"]
    assert notes(caplog) == []


def test_a_sequence_is_tried_in_its_order(
    bundle: Bundle, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    register("npu", NOT_BUILT)
    register("tpu", MissingExtraError("no tpu here"), present=False)
    with edgeclip.load(bundle, engine=("tpu", "npu", "onnxruntime-cpu")) as model:
        assert used(model)["image"]["fell_back"] == f"tpu: no tpu here; npu: {NOT_BUILT}"
    with edgeclip.load(bundle, engine=["onnxruntime-cpu", "npu"]) as model:
        assert used(model)["image"]["engine"] == "onnxruntime-cpu"
    assert len(notes(caplog)) == 2  # of the first
    with pytest.raises(
        EngineError, match=r"^image tower: opens on no engine\. npu: no engine .*; tpu: no tpu here$"
    ):
        used(edgeclip.load(bundle, engine=["npu", "tpu"]))
    with pytest.raises(EngineError, match="engine 'gpu': no such engine"):
        edgeclip.load(bundle, engine=["onnxruntime-cpu", "gpu"])


def test_a_built_engine_that_does_not_open_is_told(
    bundle: Bundle, register: Register, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another one that was built, of another precision, stands in for it; what only the bundle has is no such case."""
    register("npu")
    module = sys.modules["stand_in_npu"]
    own = bundle.manifest.variants_of("image")[0]
    half = replace(own, id="image-fp16", axes=replace(own.axes, precision="fp16"))
    plain = module.open_engine

    def open_variant(bundle: Bundle, variant: Any, options: Any) -> Any:
        if variant.id == half.id:
            raise EngineError("its plan was changed. Build it again.")
        return plain(bundle.path(variant.files[0]), variant, options)

    del module.open_engine
    vars(module).update(open_variant=open_variant, local_variants=lambda bundle, options: [half])
    with edgeclip.load(bundle) as model:
        towers = used(model)
    assert towers["image"]["variant"] == own.id
    assert towers["image"]["fell_back"] == "image-fp16: its plan was changed. Build it again"
    assert notes(caplog) == ["image tower: runs on npu; image-fp16: its plan was changed. Build it again"]
    caplog.clear()
    vars(module).update(local_variants=lambda bundle, options: [])
    with edgeclip.load(bundle) as model:
        assert "fell_back" not in used(model)["image"]
    assert notes(caplog) == []


def test_one_name_allows_no_other(bundle: Bundle, register: Register) -> None:
    register("npu", NOT_BUILT, only="text")
    with edgeclip.load(bundle, engine="npu") as model:
        assert np.isfinite(model.embed_images(picture(1))).all()
        with pytest.raises(EngineError, match=r"^no engine was built\."):
            model.embed_texts("a cat")


def test_a_precision_that_an_engine_lacks_is_a_reason(bundle: Bundle, register: Register) -> None:
    """Nothing in it was tried, and still the user is told why it was passed over."""
    register("npu")
    with pytest.raises(EngineError, match="no image tower in int8; it has fp32"):
        edgeclip.load(bundle, precision="int8", engine="npu")


@pytest.fixture
def line(tmp_path: Path, bundle: Bundle) -> list[str]:
    Image.fromarray(picture(1)).save(tmp_path / "a.png")
    return ["classify", str(tmp_path / "a.png"), "--labels", "a cat,a dog", "-b", str(bundle.root)]


def test_the_command_line_tells_it_as_a_note(
    line: list[str], register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    register("npu", NOT_BUILT)
    assert run([*line, "--json", "--strict"]) == 0  # nothing is wrong with the picture
    said = capsys.readouterr()
    assert json.loads(said.out)["label"] in ("a cat", "a dog")
    assert said.err.splitlines() == [
        f"edgeclip: {tower} tower: runs on onnxruntime-cpu; npu: {NOT_BUILT}" for tower in ("text", "image")
    ]
    assert run([*line, "--engine", "npu, onnxruntime-cpu"]) == 0
    assert run([*line, "--engine", "onnxruntime-cpu"]) == 0
    assert capsys.readouterr().err.count("runs on") == 2  # of the first of these two


def test_required_engines_have_no_stand_in(
    line: list[str], register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    register("npu", NOT_BUILT)
    assert run([*line, "--require", "npu"]) == 2
    assert capsys.readouterr().err == f"edgeclip: {NOT_BUILT}\n"
    assert run([*line, "--require", "onnxruntime-cpu"]) == 0
    capsys.readouterr()
    for wrong, message in (
        (["--engine", "npu", "--require", "npu"], "--engine npu and --require npu: expected one of them"),
        (["--engine", "npu,,"], "--engine 'npu,,': expected names separated by commas"),
        (["--require", "npu,onnxruntime-cpu"], "engine 'npu,onnxruntime-cpu': no such engine. Choose one of"),
        (["--require", "x"], "engine 'x': no such engine"),
    ):
        assert run([*line, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_these_tests_see_a_silent_fall_back(
    bundle: Bundle, register: Register, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Tower, "_announce", broken(Tower._announce, "self.fell_back and not", "not self.fell_back and not")
    )
    register("npu", NOT_BUILT)
    with edgeclip.load(bundle) as model:
        used(model)
    assert notes(caplog) == []


def test_a_cpu_machine_loads_nothing_of_a_gpu(bundle: Bundle) -> None:
    """Asking what is present costs no import there: `load` stays as fast as it was."""
    program = (
        "import sys, edgeclip.runtime.engines as engines; engines.has_gpu = lambda: False; import edgeclip; "
        f"edgeclip.load({str(bundle.root)!r}).warmup(); "
        "print([m for m in sys.modules if m.split('.')[0] in ('cuda', 'tensorrt', 'tensorrt_rtx') or 'runtime.tensorrt' in m])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (said.stdout, said.stderr) == ("[]\n", "")


def test_names_as_the_command_line_gives_them() -> None:
    from edgeclip.cli.common import wanted_engines

    assert wanted_engines(None, None) is None
    assert wanted_engines("a", None) == wanted_engines(None, "a") == "a"
    assert wanted_engines("a, b", None) == ("a", "b")
    with pytest.raises(InputError):
        wanted_engines("", None)
