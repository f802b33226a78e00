"""A run that is stopped, killed or resumed ends where it would have ended; what goes wrong is said in one line."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeclip.errors import InputError, TrainingError
from edgeclip.models.nano import NanoCLIP, NanoConfig
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.models.training import Recipe, rehearse, train
from edgeclip.models.training.distributed import pick_device
from edgeclip.models.training.metrics import Metrics
from edgeclip.models.training.optimizer import AveragedCopy, learning_rate, make_optimizer
from edgeclip.models.training.prefetch import prefetch
from edgeclip.models.training.starts import from_scratch
from edgeclip.models.training.validation import recall_at_1
from tests.training.tiny import TINY, curve, start_process, tiny


def weights(output: Path) -> dict[str, Tensor]:
    return load_file(output / "model" / "model.safetensors")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


EMA = tiny(ema_decay=0.9, steps=60, checkpoint_every=10)
RUN = """
import sys
from pathlib import Path
import torch
from edgeclip.models.training import train
from tests.training.test_loop import EMA
torch.set_num_threads(1)
train(EMA, Path(sys.argv[1]), progress=False)
"""


def test_killed_and_resumed_is_bit_for_bit_the_whole_run(tmp_path: Path) -> None:
    killed = start_process(RUN, str(tmp_path / "killed"))
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("loss") < 23:
        assert killed.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    steps_done = len(curve(tmp_path / "killed"))
    assert 23 <= steps_done < 60
    with metrics.open("a") as stream:
        stream.write('{"step": 58, "lo')  # what a kill in the middle of a line leaves
    (tmp_path / "killed/checkpoints/.step-00000030.half").mkdir()
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process: sums of several threads are others
    try:
        train(EMA, tmp_path / "killed", progress=False)
        train(EMA, tmp_path / "whole", progress=False)
    finally:
        torch.set_num_threads(before)
    assert [step for step, _ in curve(tmp_path / "whole")] == list(range(1, 61))
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert not list((tmp_path / "killed/checkpoints").glob(".step*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_with_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    def raise_signal(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    recipe = tiny(batches=lambda *parts: Watched(raise_signal, *parts), workers=0)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "a", progress=False)
    assert signal.getsignal(number) == before
    assert (tmp_path / "a/checkpoints/latest").read_text() == "step-00000006\n"
    train(replace(recipe, batches=recipe.batches), tmp_path / "a", progress=False)
    train(TINY, tmp_path / "b", progress=False)
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


class Watched:
    """The usual pairs, with a look at each step."""

    def __init__(self, look: Any, *parts: Any) -> None:
        from edgeclip.models.training.data.pairs import ShuffledPairs

        self.pairs, self.look = ShuffledPairs(*parts), look

    def batch(self, step: int) -> Any:
        self.look(step)
        return self.pairs.batch(step)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = train(TINY, tmp_path, progress=False)
    again = train(TINY, tmp_path, progress=False)
    assert replace(again, seconds=0) == replace(first, seconds=0)
    assert len(curve(tmp_path)) == 12
    with pytest.raises(TrainingError, match="holds a run that came to step-00000012"):
        train(TINY, tmp_path, resume=False, progress=False)


def test_contradictions_are_refused(tmp_path: Path) -> None:
    train(TINY, tmp_path, progress=False)
    with pytest.raises(TrainingError, match="started with seed = 0, now it is 1"):
        train(tiny(seed=1), tmp_path, progress=False)
    with pytest.raises(TrainingError, match="data: shapes:121 holds other pairs"):
        train(tiny(data="shapes:121"), tmp_path, progress=False)
    (tmp_path / "checkpoints/step-00000012/training.safetensors").write_bytes(b"cut")
    with pytest.raises(
        TrainingError, match=r"training\.safetensors: cannot be read .* Write an older checkpoint's name"
    ):
        train(TINY, tmp_path, progress=False)
    (tmp_path / "checkpoints/latest").write_text("step-00000008\n")
    train(TINY, tmp_path, progress=False)
    assert len(curve(tmp_path)) == 12


@pytest.mark.parametrize("ship", ["best", "last"])
def test_best_checkpoint_is_kept_and_shipped_unless_the_last_is_asked_for(
    tmp_path: Path, ship: Literal["best", "last"]
) -> None:
    class Scored(Watched):
        scores = iter([0.0, 0.5, 0.9, 0.7, 0.9, 0.1])  # at step 0, then every 2 steps

        def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
            return {"score": next(self.scores)}

    recipe = tiny(
        batches=lambda *parts: Scored(lambda step: None, *parts),
        steps=10,
        checkpoint_every=2,
        keep_checkpoints=1,
        ship=ship,
    )
    result = train(recipe, tmp_path, progress=False)
    assert (result.best_step, result.best_score, result.steps) == (4, 0.9, 10)
    folders = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert folders == ["step-00000004", "step-00000010"]
    best, last = (load_file(tmp_path / "checkpoints" / name / "model/model.safetensors") for name in folders)
    assert same(weights(tmp_path), best) == (ship == "best")
    assert same(weights(tmp_path), last) == (ship == "last")


def test_the_result_is_a_source(tmp_path: Path) -> None:
    result = train(tiny(templates=("a picture of {}",)), tmp_path, progress=False)
    source = load_source(str(result.model))
    assert (source.family, source.name) == ("clip", tmp_path.name)  # the run's, not "model"
    assert source.preprocessing.size == (16, 16)
    assert (source.text.pad_id, source.text.eos_id, source.text.dynamic_length) == (0, 1, True)
    assert "licence was not stated" in source.licence.warnings[-1]
    again = train(
        tiny(model="source", init_from=str(result.model), clip=None, steps=2, data="shapes:200"),
        tmp_path / "more",
        progress=False,
    )
    more = load_source(str(again.model))
    assert more.tokenizer_json == source.tokenizer_json
    assert more.licence.warnings == source.licence.warnings
    records = [json.loads(line) for line in (tmp_path / "more/metrics.jsonl").read_text().splitlines()]
    assert records[0]["step"] == 0
    assert records[0]["pairs"] > 10


def test_records_say_what_happened(tmp_path: Path) -> None:
    train(
        tiny(objectives=(("info_nce", 1.0), ("image_contrast", 0.5)), log_every=5), tmp_path, progress=False
    )
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == [5, 10, 12]
    for record in steps:
        assert record["loss"] == pytest.approx(record["info_nce"] + 0.5 * record["image_contrast"], rel=1e-5)
        assert record["learning_rate"] == pytest.approx(learning_rate(TINY, record["step"] - 1))
        assert record["pairs_per_s"] > 0
    assert [record["step"] for record in records if "score" in record] == [0, 4, 8, 12]


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    def breaks(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        calls.append(1)
        return (image * text).sum() * scale / (0.0 if len(calls) == 7 else 1.0)

    calls: list[int] = []
    with pytest.raises(
        TrainingError, match=r"step 7: expected finite numbers, .*The last good checkpoint is .*step-00000004"
    ):
        train(tiny(objectives=((breaks, 1.0),)), tmp_path, progress=False)
    assert all(
        torch.isfinite(value).all()
        for value in load_file(tmp_path / "checkpoints/step-00000004/model/model.safetensors").values()
    )


def test_unread_settings_end_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"tokenizer: set to 'x\.json', but nothing"):
        train(own_recipe(tokenizer="x.json"), tmp_path, progress=False)
    with pytest.raises(TrainingError, match="init_from: set to 'a', but nothing"):
        train(tiny(init_from="a"), tmp_path, progress=False)


@dataclass(frozen=True)
class StripeBatch:
    """Pictures of one colour each, and the id of its name."""

    pixels: Tensor
    names: Tensor
    target: Tensor


class Stripes:
    """Batches of one's own."""

    def batch(self, step: int) -> StripeBatch:
        generator = torch.Generator().manual_seed(step)
        target = torch.randint(0, 4, (12,), generator=generator)
        pixels = 0.1 * torch.randn(12, 3, 16, 16, generator=generator)
        pixels[torch.arange(12), target % 3] += torch.where(target == 3, -1.0, 1.0)[:, None, None]
        return StripeBatch(pixels, torch.arange(1, 5)[:, None], target)


def encode_stripes(model: NanoCLIP, batch: StripeBatch) -> dict[str, Tensor]:
    normalize = nn.functional.normalize
    image, names = (
        normalize(model.encode_image(batch.pixels), dim=-1),
        normalize(model.encode_text(batch.names), dim=-1),
    )
    return {"image": image, "names": names, "target": batch.target}


def naming(image: Tensor, names: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scale * image @ names.T, target)


def new_nano(recipe: Recipe) -> Source:
    config = NanoConfig(
        image_size=16, widths=(8,), depths=(1,), embed_dim=8, vocab_size=300, text_width=8, text_layers=1
    )
    return replace(from_scratch(replace(TINY, clip=TINY.clip)), family="nano", model=NanoCLIP(config))


def own_recipe(**changes: Any) -> Recipe:
    recipe = Recipe(
        model=new_nano, batches=lambda *parts: Stripes(), encode=encode_stripes, objectives=((naming, 1.0),)
    )
    return replace(recipe, steps=40, learning_rate=1e-2, warmup_steps=0, log_every=1, device="cpu", **changes)


def test_a_recipe_may_bring_its_own_model_batches_and_objective(tmp_path: Path) -> None:
    result = train(own_recipe(ema_decay=0.9), tmp_path, progress=False)
    values = [loss for _, loss in curve(tmp_path)]
    assert values[0] > 0.7
    assert result.loss < 0.1
    assert load_source(str(result.model)).family == "nano"


def test_cosine_schedule_by_hand() -> None:
    recipe = tiny(learning_rate=2.0, warmup_steps=4, steps=12)
    rates = [learning_rate(recipe, step) for step in range(12)]
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[6] == pytest.approx(1 + math.cos(math.pi / 4))
    assert rates[8] == pytest.approx(1.0)
    assert rates[11] == pytest.approx(1 + math.cos(math.pi * 7 / 8))
    assert learning_rate(replace(recipe, schedule="constant"), 11) == 2.0


def test_only_matrices_decay() -> None:
    model = from_scratch(TINY).model
    optimizer = make_optimizer(model, tiny(weight_decay=0.3))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = {
        names[id(p)] for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]
    }
    assert {
        "logit_scale",
        "image.class_token",
        "image.norm_pre.weight",
        "text.blocks.0.attention.qkv.bias",
    } <= spared
    assert all(name.endswith(("bias", "class_token", "logit_scale")) or "norm" in name for name in spared)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_average_by_hand() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(model[0].weight, 1.0)
    average = AveragedCopy(model, 0.15)
    nn.init.constant_(model[0].weight, 2.0)
    model[1].running_mean.fill_(10.0)
    model[1].num_batches_tracked.fill_(7)
    average.update(model, 0)  # the ramp's first decay is 1/10
    assert average.model[0].weight.item() == pytest.approx(1.9)  # type: ignore[index]
    assert average.model[1].running_mean.item() == pytest.approx(9.0)  # type: ignore[index]
    assert average.model[1].num_batches_tracked.item() == 7  # type: ignore[index]
    average.update(model, 1)  # min(0.15, 2/11)
    assert average.model[0].weight.item() == pytest.approx(1.985)  # type: ignore[index]


def test_scale_is_clamped(tmp_path: Path) -> None:
    def grow(image: Tensor, scale: Tensor) -> Tensor:
        return image.sum() - scale

    train(
        tiny(objectives=((grow, 1.0),), max_scale=14.5, learning_rate=0.1, batch_size=4),
        tmp_path,
        progress=False,
    )
    assert weights(tmp_path)["logit_scale"].exp().item() == pytest.approx(14.5, rel=1e-5)


def test_bf16_towers_fp32_weights(tmp_path: Path) -> None:
    train(tiny(precision="bf16"), tmp_path / "half", progress=False)
    train(TINY, tmp_path / "full", progress=False)
    half, full = curve(tmp_path / "half"), curve(tmp_path / "full")
    assert half[0][1] != full[0][1]
    assert half[0][1] == pytest.approx(full[0][1], rel=0.02)
    assert weights(tmp_path / "half")["image.patches.weight"].dtype == torch.float32


def test_recall_by_hand() -> None:
    items = torch.eye(3)
    queries = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 0, 1.0]])  # the second finds item 0
    assert recall_at_1(queries, items, torch.tensor([0, 1, 2])) == pytest.approx(2 / 3)
    assert recall_at_1(queries, items, torch.tensor([5, 5, 2])) == 1.0


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_prefetch_keeps_order_and_stays_close(workers: int) -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step * step

    batches = prefetch(make, 4, 20, workers)
    assert [next(batches) for _ in range(3)] == [16, 25, 36]
    batches.close()  # type: ignore[attr-defined]
    assert len(made) <= 3 + workers + 1
    assert list(prefetch(make, 0, 4, workers)) == [0, 1, 4, 9]

    def fail(step: int) -> int:
        raise InputError(f"no {step}")

    with pytest.raises(InputError, match="no 0"):
        list(prefetch(fail, 0, 3, workers))


def test_metrics_drop_what_comes_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    Metrics(path, 2).close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_rehearsal_writes_nothing_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = rehearse(TINY)
    assert report["parameters"] == sum(p.numel() for p in from_scratch(TINY).model.parameters())
    train(TINY, tmp_path / "run", progress=False)
    assert report["loss"] == curve(tmp_path / "run")[0][1]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    for name in ("gpu", "meta"):
        with pytest.raises(TrainingError, match="device: expected auto, cpu, cuda"):
            pick_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match="sees no CUDA device"):
            pick_device("cuda")


def test_random_state_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    train(tiny(steps=2), tmp_path, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
