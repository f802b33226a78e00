"""A dense model becomes a mixture of experts in one run of several parts, each of which may be the last before a kill."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from edgeclip.cli import run
from edgeclip.errors import SourceError, TrainingError
from edgeclip.models.feed_forward import moe_layers
from edgeclip.models.sources import load_source
from edgeclip.models.training import (
    Recipe,
    Upcycling,
    load_plan,
    load_recipe,
    multistage,
    rehearse_stages,
    run_stages,
    with_plan_settings,
)
from edgeclip.models.training.checkpoint import write_source
from edgeclip.models.training.data.cluster_labels import load_clusters, save_clusters
from edgeclip.models.training.distributed import Shard
from edgeclip.models.training.multistage import _Stages
from edgeclip.models.training.plan import START
from edgeclip.models.training.starts import start
from tests.training.tiny import curve, start_process, tiny

QUICK = (
    "data=shapes:100", "validation_share=0.2", "batch_size=8", "accumulate=1", "device=cpu", "workers=0", "log_every=1",
    "warmup_steps=1", "checkpoint_every=2", "steps=3", "experts=3", "image_clusters=2", "text_clusters=1",
    "stage.learning_rate=1e-2", "router.learning_rate=1e-2",
)  # fmt: skip
PARTS = ["base", "clusters-1", "stage-1", "clusters-2", "stage-2", "assembled", "router", "model"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "source"
    write_source(folder, start(tiny(data="shapes:100")))
    return folder


def quick(dense: Path, *changes: str) -> Upcycling:
    return with_plan_settings(load_plan("clip_moe"), (f"init_from={dense}", *QUICK, *changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads are others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    result = run_stages(quick(dense), output, progress=False)
    assert (result.model, result.stages, result.steps) == (output / "model", 2, 3)
    assert len(result.pairs_used) == 2
    assert 0.5 < min(result.pairs_used) <= 1
    sizes = {name: x.numel() for name, x in weights(output / "model").items()}
    experts = sum(n for name, n in sizes.items() if ".experts." in name)
    assert result.stored == sum(sizes.values())
    assert result.activated == result.stored - experts // 3  # 2 of 3
    return output


def weights(model: Path) -> dict[str, Tensor]:
    return load_file(model / "model.safetensors")


def moved(one: dict[str, Tensor], two: dict[str, Tensor]) -> set[str]:
    assert one.keys() == two.keys()
    return {name for name in one if not torch.equal(one[name], two[name])}


def test_only_feed_forwards_move_in_stages_and_only_routers_behind_them(whole: Path) -> None:
    base = weights(whole / "base")
    for j in (1, 2):
        changed = moved(base, weights(whole / f"stage-{j}" / "model"))
        assert changed == {name for name in base if ".mlp." in name}
    mixture = weights(whole / "model")
    changed = moved(weights(whole / "assembled"), mixture)
    assert changed == {name for name in mixture if name.endswith(".mlp.router.weight")}
    for name, value in base.items():
        if ".mlp." not in name:
            assert torch.equal(mixture[name], value)
        else:
            for j, model in enumerate((whole / "base", whole / "stage-1/model", whole / "stage-2/model")):
                assert torch.equal(mixture[name.replace(".mlp.", f".mlp.experts.{j}.")], weights(model)[name])
    model = load_source(str(whole / "model")).model
    assert list(moe_layers(model)) == ["image.blocks.0.mlp", "text.blocks.0.mlp"]
    assert load_clusters(whole / "clusters-2.safetensors").count == 4


@pytest.mark.parametrize(("chain", "before"), [(False, "base"), (True, "stage-1/model")])
def test_a_stage_starts_from_the_base_or_the_one_before(
    whole: Path, dense: Path, monkeypatch: pytest.MonkeyPatch, chain: bool, before: str
) -> None:
    seen: list[Recipe] = []
    monkeypatch.setattr(multistage, "train", lambda recipe, output, progress: seen.append(recipe))
    stages = _Stages(quick(dense), whole, Shard(), True, False)
    stages.plan = replace(stages.plan, chain=chain)
    stages._learn(2)
    (recipe,) = seen
    assert callable(recipe.model)
    assert recipe.model(recipe).digest == load_source(str(whole / before)).digest
    assert recipe.clusters == str(whole / "clusters-2.safetensors")
    assert recipe.trained == ("image.blocks.0.mlp.*", "text.blocks.0.mlp.*")
    assert str(whole) not in json.dumps({**recipe.to_json(), "clusters": ""})  # the folder may move


def test_stopped_after_any_part_the_end_is_the_same(whole: Path, dense: Path, tmp_path: Path) -> None:
    plan, output = quick(dense), tmp_path / "run"
    for number, name in enumerate(PARTS):
        stages = _Stages(plan, output, Shard(), True, False)
        stood = [part for _, part in zip(range(number + 1), stages.parts(), strict=False)]
        assert stood[-1] == name
        assert not (output / "model").exists() or name == "model"
        if name in ("base", "assembled", "model"):
            (output / f".{name}.left").mkdir()  # of a kill in the middle of writing
        (output / "stage-1/.model.left").mkdir(parents=True, exist_ok=True)
    for model in ("stage-1/model", "stage-2/model", "router/model", "model"):
        assert not moved(weights(whole / model), weights(output / model)), model
    assert curve(output / "router") == curve(whole / "router")
    run_stages(plan, output, progress=False)
    assert not list(output.rglob(".*.left"))


RUN = """
import sys
from pathlib import Path
import torch
from edgeclip.models.training import run_stages
from tests.training.test_multistage import quick
torch.set_num_threads(1)
run_stages(quick(Path(sys.argv[1]), "stage.steps=60"), Path(sys.argv[2]), progress=False)
"""


@pytest.mark.parity
def test_killed_inside_a_stage_the_end_is_the_same(dense: Path, tmp_path: Path) -> None:
    killed = start_process(RUN, str(dense), str(tmp_path / "killed"))
    metrics = tmp_path / "killed/stage-2/metrics.jsonl"
    deadline = time.monotonic() + 240
    while not metrics.exists() or metrics.read_text().count("loss") < 9:
        assert killed.poll() is None, killed.stderr.read() if killed.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed/stage-2/model").exists()
    plan = quick(dense, "stage.steps=60")
    for name in ("killed", "whole"):
        run_stages(plan, tmp_path / name, progress=False)
    assert curve(tmp_path / "killed/stage-2") == curve(tmp_path / "whole/stage-2")
    assert not moved(weights(tmp_path / "killed/model"), weights(tmp_path / "whole/model"))


def test_a_rehearsal_says_what_is_ahead_and_writes_nothing(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = quick(dense)
    found = rehearse_stages(plan)
    base = sum(x.numel() for x in weights(dense).values())
    assert found["pairs"] + found["held_out"] == 100
    assert (found["clusters"], found["steps"], found["parameters"]) == ([2, 4], 9, base)
    assert found["pairs_per_cluster"] == [found["pairs"] // 2, found["pairs"] // 4]
    assert found["stored"] > found["activated"] > base
    assert found["stage"]["loss"] > 0
    assert found["router"]["load_balance"] > 0
    assert json.dumps(found)
    assert not list(tmp_path.iterdir())


def test_what_comes_late_is_refused_before_the_first_part(whole: Path, dense: Path, tmp_path: Path) -> None:
    for change, message in [
        (
            "router.resolution=32",
            r"router\.resolution: set to 32, but the router starts from what the stages left",
        ),
        ("router.images=there", "images: set to 'there', but nothing in this run reads it"),
        ("router.trained=*.rooter.*", r"trained: no parameter's name matches '\*\.rooter\.\*'"),
        ("batch_size=90", "training pairs"),
    ]:
        with pytest.raises(TrainingError, match=message):
            run_stages(quick(dense, change), tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()
    with pytest.raises(SourceError, match=r"image\.blocks\.0\.mlp is a mixture of experts already"):
        run_stages(quick(whole / "assembled"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_changed_plan_is_refused(whole: Path, dense: Path) -> None:
    for change, message in [
        ("experts=4", "started with experts = 3, now it is 4. Set it back, or name another output folder"),
        ("chain=true", "started with chain = False, now it is True"),
        ("stage.steps=4", r"its stages: started with steps = 3, now it is 4"),
        ("router.steps=4", r"its router: started with steps = 3, now it is 4"),
    ]:
        with pytest.raises(TrainingError, match=message):
            run_stages(quick(dense, change), whole, progress=False)
    run_stages(
        quick(dense, "workers=1", "log_every=2"), whole, progress=False
    )  # what changes no number may differ
    with pytest.raises(TrainingError, match=r"holds a run of stages\. Resume it"):
        run_stages(quick(dense), whole, resume=False, progress=False)
    with pytest.raises(TrainingError, match="holds a run of another kind"):
        run_stages(quick(dense), whole / "stage-1", progress=False)


def test_labels_of_another_model_are_refused(whole: Path, dense: Path, tmp_path: Path) -> None:
    stages = _Stages(quick(dense), tmp_path / "run", Shard(), True, False)
    assert [part for _, part in zip(range(2), stages.parts(), strict=False)] == PARTS[:2]
    path = tmp_path / "run/clusters-1.safetensors"
    save_clusters(path, replace(load_clusters(path), models=("another",)))
    with pytest.raises(
        TrainingError, match=r"clusters-1.safetensors: was made with another model than .*base\. Delete it"
    ):
        run_stages(quick(dense), tmp_path / "run", progress=False)
    path.unlink()
    later = _Stages(
        quick(dense, "router.steps=4"), tmp_path / "run", Shard(), True, False
    )  # it has not begun
    assert next(later.parts()) == "base"
    assert json.loads((tmp_path / "run/plan.json").read_text())["router"]["steps"] == 4
    (tmp_path / "run/plan.json").write_text("{")
    with pytest.raises(TrainingError, match=r"plan\.json: cannot be read"):
        run_stages(quick(dense), tmp_path / "run", progress=False)


def test_settings_reach_both_runs_or_one() -> None:
    plan = with_plan_settings(
        Upcycling(),
        ("steps=50", "stage.steps=20", "warmup_steps=5", "init_from=a", "router.learning_rate=1e-3", "top_k=1", "augmentation.flip=0.5"),
    )  # fmt: skip
    assert (plan.stage.steps, plan.router.steps, plan.top_k) == (20, 50, 1)
    assert (plan.stage.init_from, plan.router.init_from) == ("a", "")
    assert (plan.stage.learning_rate, plan.router.learning_rate) == (1e-5, 1e-3)
    assert plan.stage.augmentation.flip == plan.router.augmentation.flip == 0.5
    assert (plan.stage.top_k, plan.router.top_k) == (2, 2)
    assert set(START) <= set(Recipe().to_json())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage.stepz=1", "--set stage.stepz=1: no setting 'stepz'; did you mean steps?"),
        ("expert=3", "--set expert=3: no setting 'expert'; did you mean experts?"),
        ("learning_rat=3", "did you mean learning_rate?"),
        ("steps", "expected key=value"),
        ("stage=1", "cannot be set from a text"),
        ("steps=many", "expected a number"),
        ("router.steps=0", "router.steps: expected 1 or more, got 0"),
        ("experts=1", "experts: expected 2 or more"),
        ("top_k=5", "top_k: expected 1 to experts 4, got 5"),
        ("expert_layers=-1", "expert_layers: expected 0 or more"),
        ("expert_towers=image,video", "expert_towers: expected image, text or both"),
        ("image_clusters=0", "image_clusters: expected 1 or more"),
        ("text_clusters=0", "text_clusters: expected 1 or more"),
        ("experts=64", "make more than can be counted"),
        ("stage.top_k=1", "stage.top_k: stages and router share it. Set top_k instead."),
        ("clusters=x", "stage.clusters: the run makes its own"),
        (
            "router.init_from=x",
            "router.init_from: set to 'x', but the router starts from what the stages left",
        ),
        ("stage.batches=pairs", "stage.batches: expected clustered, got 'pairs'"),
        ("batches=clustered", "router.batches: a router learns on all pairs"),
        ("chain=maybe", "expected true or false"),
    ],
)
def test_settings_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(TrainingError) as raised:
        with_plan_settings(Upcycling(), (text,))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(TrainingError, match="stage: expected a Recipe, got int"):
        Upcycling(stage=3)  # type: ignore[arg-type]


def test_the_command_runs_a_plan_and_says_which_part(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "from edgeclip.models.training import Upcycling\nRECIPE = Upcycling(name='mine', experts=2, expert_layers=1)\n"
    )
    settings: list[Any] = [f"--set={text}" for text in (f"init_from={dense}", *QUICK, "experts=2", "steps=1")]
    command = ["train", str(tmp_path / "mine.py"), "-o", str(tmp_path / "run"), *settings]
    assert run([*command, "--dry-run"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["recipe"]["stage"]["data"] == "shapes:100"
    assert record["clusters"] == [2]
    assert not (tmp_path / "run").exists()
    assert run(command) == 0
    said = capsys.readouterr()
    assert "3/6 stage-1: 1 steps inside 2 clusters" in said.err
    assert f"edgeclip export {tmp_path}/run/model" in said.out
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"] == 1
    with pytest.raises(TrainingError, match="is a run of stages; load_plan opens it"):
        load_recipe("clip_moe")


def test_stopped_the_command_says_that_nothing_is_lost(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(plan: Upcycling, output: Path, **others: bool) -> None:
        output.mkdir()
        (output / "plan.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeclip.models.training.run_stages", stop)
    assert run(["train", "clip_moe", "-o", str(tmp_path / "run"), f"--set=init_from={dense}"]) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert "stopped with all finished parts in" in said
    assert "the same command goes on from there" in said
