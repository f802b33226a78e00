"""The command as real processes: killed in any part it ends as if never killed; under torchrun both processes train, and one writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from edgeclip.bundle import open_bundle
from edgeclip.models.config import TransformerConfig
from edgeclip.models.training import train
from edgeclip.runtime.verify import verify
from tests.training.tiny import ROOT, TINY, tiny

pytestmark = pytest.mark.parity

ASK = [
    "--student", "half-width", "--data", "shapes:160", "--views", "2", "--target", "portable", "--allow-weaker", "--set", "validation_share=0.2",
    "--set", "batch_size=16", "--set", "device=cpu", "--set", "steps=24", "--set", "warmup_steps=2", "--set", "workers=0", "--set", "checkpoint_every=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a teacher of two blocks."""
    assert TINY.clip is not None
    clip = replace(TINY.clip, image=replace(TINY.clip.image, blocks=TransformerConfig(32, 2, 4, 64)))
    made = tiny(clip=clip, objectives=(("multi_positive", 1.0),), steps=20, data="shapes:160")
    return str(train(made, tmp_path_factory.mktemp("teacher"), progress=False).model)


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def command(teacher: str, output: Path) -> list[str]:
    return ["-m", "edgeclip", "distill", teacher, *ASK, "-o", str(output)]


@pytest.fixture(scope="module")
def whole(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distillation that nobody disturbed."""
    output = tmp_path_factory.mktemp("whole") / "student"
    process = started(sys.executable, *command(teacher, output))
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return output


def weights(output: Path) -> bytes:
    return (output / "run/model/model.safetensors").read_bytes()


def test_killed_in_any_part_it_ends_as_if_never_killed(teacher: str, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "student"
    for part in ("distill.json", "reinforced", "run/metrics.jsonl", "run/model", "bundle"):
        process = started(sys.executable, *command(teacher, output))
        while not (output / part).exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = started(sys.executable, *command(teacher, output))
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert weights(output) == weights(whole)
    verify(open_bundle(str(output / "bundle"))).require()
    assert {path.name for path in output.iterdir()} == {path.name for path in whole.iterdir()}


def test_torchrun_trains_in_both_and_writes_in_one(teacher: str, whole: Path, tmp_path: Path) -> None:
    """Two processes with half of each batch are one with all of it, up to the order of sums."""
    output = tmp_path / "student"
    process = started(
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command(teacher, output),
    )  # fmt: skip
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    one, two = (load_file(root / "run/model/model.safetensors") for root in (whole, output))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-3
    verify(open_bundle(str(output / "bundle"))).require()
    assert (output / "report.html").exists()


def test_torchrun_ends_where_the_first_process_refuses(tmp_path: Path) -> None:
    """The second does not wait for ever."""
    asked = command(str(tmp_path / "nobody"), tmp_path / "student")
    process = started(
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *asked
    )
    told, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert told.count("nobody: no such") + told.count("nobody: not found") + told.count("edgeclip: ") >= 1, (
        told
    )
