"""Which cells there are, what is kept of them, and what becomes of a process that crashes, hangs or runs something else."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edgeclip.bench import matrix, matrix_cell
from edgeclip.bench.cells import Cell, Matrix
from edgeclip.bench.matrix import run_matrix
from edgeclip.bench.matrix_cell import Asked, Found, answer_to, measure_cell
from edgeclip.bench.reading import open_matrix, to_json
from edgeclip.bench.report import PictureSet, Quantile, Spread
from edgeclip.bench.samples import Inputs
from edgeclip.bench.settings import Settings, preset
from edgeclip.bundle import Bundle, Fidelity, seal
from edgeclip.errors import InputError
from tests.runtime.toy import make_bundle

CPU = "onnxruntime-cpu"
SETTINGS = preset("quick", task="embed", part_seconds=0.01, threads=1)
INPUTS = Inputs((), ("a cat", "a photo of a dog"), PictureSet("texts", 2, 8, 0, "f" * 64))
FOUND = Found("CPUExecutionProvider", Spread(9, 4.0, 1.0, *[Quantile(2.0)] * 3, max_ms=9.0), 7.0, 1 << 20)
FIDELITY = Fidelity(8, 1e-3, 1.0, 1.0, 1.0, 0.02, 1.0)


@pytest.fixture(autouse=True)
def _fewer_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is described once."""
    device = matrix.describe_device()
    monkeypatch.setattr(matrix, "describe_device", lambda: device)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Two image variants, of which the second is a copy under another name."""
    made = make_bundle(tmp_path / "toy")
    image, text = made.manifest.variants
    file = "graphs/image-int8.onnx"
    (made.root / file).write_bytes(made.path(image.files[0]).read_bytes())
    axes = replace(image.axes, precision="int8")
    second = replace(image, id="image-int8", axes=axes, files=(file,), fidelity=FIDELITY)
    return seal(made.root, replace(made.manifest, variants=(image, second, text)))


class Asking:
    """Stands for the processes: fails where it is told to."""

    def __init__(self, **fails: str) -> None:
        self.fails, self.asked = fails, list[tuple[str, str, int]]()

    def __call__(self, asked: Asked, inputs: Inputs, limit_s: float) -> Found | str:
        where = (asked.settings.engines[0], asked.settings.variants[0], asked.batch)
        self.asked.append(where)
        return self.fails.get(where[1].replace("-", "_"), FOUND)  # type: ignore[return-value]


def run(bundle: Bundle, folder: Path, measure: Any, settings: Settings = SETTINGS, **how: Any) -> Matrix:
    given = {"engines": (CPU,), "variants": (), "batches": (1, 8), "inputs": INPUTS, **how}
    return run_matrix(bundle, settings, folder=folder, measure=measure, **given)


def test_every_variant_and_batch_on_every_engine(bundle: Bundle, tmp_path: Path) -> None:
    asking = Asking()
    found = run(bundle, tmp_path / "m", asking, engines=(CPU, "onnxruntime-cuda", CPU))
    wanted = [
        (engine, variant, batch)
        for engine in (CPU, "onnxruntime-cuda")
        for variant in ("image-fp32", "image-int8")
        for batch in (1, 8)
    ]
    assert asking.asked == [(c.engine, c.variant, c.batch) for c in found.cells] == wanted
    second = found.cells[3]
    assert (second.state, second.precision, second.relative_distance) == ("done", "int8", 0.02)
    assert second.throughput_per_s == 1e3 * 8 / 4.0
    assert second.size_bytes == bundle.manifest.files["graphs/image-int8.onnx"].size
    assert (second.provider, second.load_ms, second.peak_rss_bytes) == ("CPUExecutionProvider", 7.0, 1 << 20)
    (tmp_path / "m.json").write_text(to_json(found))
    assert open_matrix(tmp_path / "m.json").cells == found.cells


def test_without_names_whatever_is_here(bundle: Bundle, tmp_path: Path) -> None:
    found = run(bundle, tmp_path / "m", Asking(), replace(SETTINGS, task="search"), engines=(), batches=(1,))
    assert [(c.engine, c.variant) for c in found.cells] == [(CPU, "text-fp32")]


def test_a_run_goes_on_where_it_was(bundle: Bundle, tmp_path: Path) -> None:
    class Interrupted(Asking):
        def __call__(self, *asked: Any) -> Found | str:
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return super().__call__(*asked)

    folder, told = tmp_path / "m", list[tuple[str, float]]()
    with pytest.raises(KeyboardInterrupt):
        run(bundle, folder, Interrupted())
    kept = sorted(path.name for path in folder.iterdir())
    assert [name.rsplit("-", 1)[0] for name in kept] == [f"{CPU}-image-fp32-batch{n}" for n in (1, 8)]
    asking = Asking()
    found = run(bundle, folder, asking, tell=lambda what, left: told.append((what, left)))
    assert asking.asked == [(CPU, "image-int8", 1), (CPU, "image-int8", 8)]
    assert [c.state for c in found.cells] == ["done"] * 4
    assert [what for what, _ in told] == [
        "2 of 4 cells done before", f"cell 3 of 4: {CPU}, image-int8, batch 1", f"cell 4 of 4: {CPU}, image-int8, batch 8",
    ]  # fmt: skip
    assert told[0][1] == told[1][1] > told[2][1] >= 0
    again = Asking()
    assert run(bundle, folder, again).cells == found.cells
    assert again.asked == []


def test_failed_cells_keep_their_reason_until_they_are_to_be_tried_again(
    bundle: Bundle, tmp_path: Path
) -> None:
    reason, folder = "killed by signal 9 (out of memory?)", tmp_path / "m"
    first = run(bundle, folder, Asking(image_fp32=reason), batches=(1,))
    assert [(c.state, c.reason, c.latency is None) for c in first.cells] == [
        ("failed", reason, True),
        ("done", "", False),
    ]
    asking = Asking()
    assert run(bundle, folder, asking, batches=(1,)).cells == first.cells
    assert asking.asked == []
    retried = run(bundle, folder, asking, batches=(1,), retry_failed=True)
    assert asking.asked == [(CPU, "image-fp32", 1)]
    assert [c.state for c in retried.cells] == ["done", "done"]


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 2}, {"part_seconds": 0.02}, {"decode": "exact"}, {"seed": 1}, {"task": "classify", "labels": ("a cat", "a dog")},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_changes_a_figure_is_another_cell(
    bundle: Bundle, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run(bundle, tmp_path / "m", Asking(), batches=(1,))
    asking = Asking()
    run(bundle, tmp_path / "m", asking, replace(SETTINGS, **changes), batches=(1,))
    assert len(asking.asked) == 2


def test_other_inputs_machines_and_bundles_are_other_cells(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(bundle, tmp_path / "m", Asking(), batches=(1,))
    asking, device = Asking(), matrix.describe_device()
    run(
        bundle, tmp_path / "m", asking, replace(SETTINGS, min_seconds=99, scenarios=("server",)), batches=(1,)
    )
    monkeypatch.setattr(matrix, "describe_device", lambda: replace(device, memory_bytes=1))
    run(bundle, tmp_path / "m", asking, batches=(1,))
    assert asking.asked == [], "none of these decides what a cell takes"
    run(
        bundle,
        tmp_path / "m",
        asking,
        batches=(1,),
        inputs=replace(INPUTS, facts=replace(INPUTS.facts, sha256="e" * 64)),
    )
    assert len(asking.asked) == 2
    run(replace(bundle, digest="d" * 64), tmp_path / "m", asking, batches=(1,))
    assert len(asking.asked) == 4
    monkeypatch.setattr(matrix, "describe_device", lambda: replace(device, packages={"onnxruntime": "9.9"}))
    run(bundle, tmp_path / "m", asking, batches=(1,))
    assert len(asking.asked) == 6


@pytest.mark.parametrize("text", ["", "{", '{"engine": 3}', "[]"])
def test_a_damaged_cell_is_measured_again(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    run(bundle, tmp_path / "m", Asking(), batches=(1,), variants=("image-fp32",))
    (path,) = (tmp_path / "m").iterdir()
    path.write_text(text)
    asking = Asking()
    with caplog.at_level(logging.WARNING):
        run(bundle, tmp_path / "m", asking, batches=(1,), variants=("image-fp32",))
    assert len(asking.asked) == 1
    assert f"{path}: not a cell that can be read" in caplog.text
    assert Cell(**{**json.loads(path.read_text()), "latency": None}).state == "done"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"engines": ("onnxruntime-cpus",)}, "engine 'onnxruntime-cpus': no such engine. Did you mean 'onnxruntime-cpu'?"),
        ({"engines": ("zzz",)}, "engine 'zzz': no such engine. Choose from onnxruntime-cpu, onnxruntime-cuda"),
        ({"variants": ("image-fp23",)}, "no variant 'image-fp23' that task 'embed' could run. Did you mean 'image-fp32'?"),
        ({"variants": ("text-fp32",)}, "no variant 'text-fp32' that task 'embed' could run."),
        ({"batches": ()}, "batches: expected at least one, got none."),
        ({"batches": (0,)}, "batches: expected numbers above 0, got 0."),
        ({"settings": replace(SETTINGS, task="segment")}, "task 'segment': no such task."),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_runs(
    bundle: Bundle, tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    asking = Asking()
    with pytest.raises(InputError) as refused:
        run(bundle, tmp_path / "m", asking, **wrong)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert asking.asked == []


def test_a_bundle_without_the_tower(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy", image=False)
    with pytest.raises(InputError, match="task 'embed' runs a tower of images, and the bundle has none"):
        run(bundle, tmp_path / "m", Asking())


# --- processes


def asked(bundle: Bundle, **changes: Any) -> Asked:
    settings = replace(SETTINGS, engines=(CPU,), variants=("text-fp32",), task="search", index_size=50)
    return Asked(bundle.spec, replace(settings, **changes), 4, None)


def code(text: str) -> list[str]:
    return [sys.executable, "-S", "-c", text]


@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9 (out of memory?)"),
        ("import os; os.kill(os.getpid(), 11)", "killed by signal 11 (SIGSEGV)"),
        ("import sys; sys.stderr.write('noise\\nValueError: why\\n'); sys.exit(1)", "the process ended with code 1: ValueError: why"),
        ("pass", "the process ended with code 0: it said nothing"),
        ("print('{\"error\": \"a line\"}')", "a line"),
    ],
)  # fmt: skip
def test_a_process_that_fails_gives_its_reason(bundle: Bundle, program: str, wanted: str) -> None:
    assert measure_cell(asked(bundle), INPUTS, 60, code(program)) == wanted


def test_a_process_that_hangs_is_ended(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, limits = list[subprocess.Popen[bytes]](), list[float]()
    kill, communicate = subprocess.Popen.kill, subprocess.Popen.communicate
    monkeypatch.setattr(
        subprocess.Popen, "communicate", lambda self, data, timeout: (limits.append(timeout), communicate(self, data, timeout))[1]
    )  # fmt: skip
    monkeypatch.setattr(subprocess.Popen, "kill", lambda self: (ended.append(self), kill(self))[1])
    found = measure_cell(asked(bundle), INPUTS, 0.2, code("import time; time.sleep(99)"))
    assert found == "no result after 0.2 s"
    assert limits == [0.2]
    assert [process.returncode for process in ended] == [-9]


def test_a_cell_in_a_process(bundle: Bundle) -> None:
    found = measure_cell(asked(bundle), INPUTS, 60)
    assert isinstance(found, Found), found
    assert found.provider == "CPUExecutionProvider"
    assert found.latency.count >= 5
    assert 0 < found.latency.min_ms <= found.latency.p50.ms <= found.latency.max_ms
    assert found.load_ms > 0
    assert found.peak_rss_bytes is None or found.peak_rss_bytes > 20 << 20


def request(what: Asked) -> bytes:
    facts = {"facts": asdict(INPUTS.facts), "texts": INPUTS.texts, "sizes": []}
    return json.dumps({**asdict(what), **facts}).encode() + b"\n"


def test_an_engine_that_is_not_here_is_a_reason(bundle: Bundle) -> None:
    answer = answer_to(request(asked(bundle, engines=("onnxruntime-cuda",))))
    assert "onnxruntime" in answer["error"]
    assert "\n" not in answer["error"]


def test_what_really_ran_is_read_back(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image variant was asked for, and the task runs the text tower; then an engine for fewer rows."""
    wrong = answer_to(request(asked(bundle, variants=("image-fp32",))))
    assert wrong == {"error": f"asked for image-fp32 on {CPU}, the task ran text-fp32 on {CPU}."}
    monkeypatch.setattr(matrix_cell, "rows_at_once", lambda engine, batch: 2)
    assert answer_to(request(asked(bundle))) == {"error": "the engine was built for 2 rows a call at most."}
