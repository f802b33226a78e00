"""`edgeclip triton`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import console, emit, json_option, parse_labels, say
from edgeclip.cli.export import need_export_extra
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from edgeclip.bundle import Bundle
    from edgeclip.export.triton.repository import Repository
    from edgeclip.runtime.labels import LabelPack

EXAMPLES = """\b
Examples:
  edgeclip triton clip-b32/ -o model_repository/                    image, text and zero-shot, on GPU 0
  edgeclip triton clip-b32/ -o model_repository/ --cpu --threads 4 --max-batch 8
  edgeclip triton clip-b32/ -o model_repository/ --labels @labels.txt       pictures in, scores of these labels out
  edgeclip triton clip-b32/ -o model_repository/ --backend tensorrt --cuda-graphs --gpu 0 --gpu 1
  edgeclip triton shop/ -o model_repository/ --prefix shop_ --delay 500us --json
"""

_UNITS = {"us": 1, "ms": 1000, "s": 1_000_000}


def _microseconds(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """2ms, 500us, 1s or 0."""
    found = re.fullmatch(r"(\d+)(us|ms|s)", "0us" if value == "0" else value)
    if found is None:
        raise click.BadParameter(f"{value!r}: expected a time like 2ms, 500us or 0.")
    return int(found[1]) * _UNITS[found[2]]


@click.command(epilog=EXAMPLES)
@click.argument("bundle")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True,
    help="The model repository, a new folder.",
)  # fmt: skip
@click.option(
    "--precision", help="Serve only graphs of this precision, e.g. fp16. Default: the preferred ones."
)
@click.option(
    "--variant", "variants", multiple=True, metavar="ID",
    help="Graph to serve, as `edgeclip inspect` lists them; one for each tower.",
)  # fmt: skip
@click.option(
    "--backend", type=click.Choice(["onnxruntime", "tensorrt"]), default="onnxruntime", show_default=True,
    help="What runs the towers. Engines for tensorrt come from `edgeclip build`, on this machine.",
)  # fmt: skip
@click.option(
    "--max-batch", type=click.IntRange(min=1), default=32, show_default=True,
    help="Pictures in one run; larger requests are refused.",
)  # fmt: skip
@click.option(
    "--max-texts", type=click.IntRange(min=1), default=256, show_default=True,
    help="Texts in one run, and so labels in one zero-shot request.",
)  # fmt: skip
@click.option(
    "--delay", "delay_us", callback=_microseconds, metavar="TIME", default="2ms", show_default=True,
    help="How long a request may wait for others to share its batch.",
)  # fmt: skip
@click.option(
    "--queue", type=click.IntRange(min=0), default=512, show_default=True,
    help="Requests that may wait, more are refused at once. 0: no bound.",
)  # fmt: skip
@click.option(
    "--instances", type=click.IntRange(min=1), default=1, show_default=True,
    help="Copies of each model on each device, which run at the same time.",
)  # fmt: skip
@click.option(
    "--gpu",
    "gpus",
    type=click.IntRange(min=0),
    multiple=True,
    help="Number of a GPU; repeat for more. Default: 0.",
)
@click.option("--cpu", is_flag=True, help="Serve on the CPU.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads of one instance. Default: all cores."
)
@click.option(
    "--labels", help="Fixed labels for `classifier`: 'a cat,a dog', or @FILE with one label a line."
)
@click.option("--label", multiple=True, help="One label; repeat for more (for labels with commas).")
@click.option("--template", multiple=True, help="Prompt with a {} for the label; repeated ones are averaged.")
@click.option(
    "--pack", type=click.Path(exists=True, dir_okay=False),
    help="A label pack, instead of labels: no text tower is needed.",
)  # fmt: skip
@click.option(
    "--cuda-graphs", is_flag=True, help="With tensorrt: launch each preferred batch as one CUDA graph."
)
@click.option(
    "--accelerator", type=click.Choice(["tensorrt"]),
    help="With onnxruntime on a GPU: let it hand the graph to TensorRT, which builds at each start.",
)  # fmt: skip
@click.option(
    "--prefix", default="", help="What every model's name begins with, where one server has several bundles."
)
@click.option(
    "--engines", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With tensorrt: the folder of `edgeclip build -o`. Default: where it puts them without -o.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace what lies at the output.")
@json_option
def command(
    bundle: str, output: Path, labels: str | None, label: tuple[str, ...], template: tuple[str, ...], pack: str | None,
    gpus: tuple[int, ...], cpu: bool, threads: int | None, accelerator: Any, overwrite: bool, as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Write a model repository for NVIDIA Triton.

    BUNDLE is a folder, a .zip of one, hf:ORG/NAME, or nano; it stays as it is. The repository holds its towers, and ensembles that
    score pictures against labels. How to start a server with it: docs/triton.md.
    """
    if pack and (labels or label or template):
        raise click.UsageError(
            "--pack brings its own labels and templates; drop --labels, --label and --template."
        )
    if template and not (labels or label):
        raise click.UsageError("--template says how to write labels; pass --labels as well.")
    if cpu and gpus:
        raise click.UsageError("--cpu and --gpu exclude each other; drop one of them.")
    if output.exists() and not overwrite:
        raise InputError(
            f"{output}: already exists. Choose another place, or pass --overwrite to replace it."
        )
    need_export_extra("a Triton repository", torch=False)
    from edgeclip.bundle import open_bundle
    from edgeclip.export.triton.config import TritonSettings
    from edgeclip.export.triton.repository import write_repository

    on = () if cpu else tuple(dict.fromkeys(gpus)) or (0,)
    chosen = TritonSettings(gpus=on, threads=threads or 0, accelerator=accelerator or "", **settings)
    opened = open_bundle(bundle)
    found = write_repository(
        opened, output, chosen, _labels(opened, labels, label, template, pack), overwrite=overwrite
    )
    if as_json:
        emit(found.to_dict())
    else:
        _print(found)


def _labels(
    bundle: Bundle, labels: str | None, label: tuple[str, ...], template: tuple[str, ...], pack: str | None
) -> LabelPack | None:
    import edgeclip

    if pack:
        return edgeclip.LabelPack.open(pack)
    if not (labels or label):
        return None
    with edgeclip.load(bundle, engine="onnxruntime-cpu") as model:
        return model.make_labels(parse_labels(labels, label), templates=template or None)


def _print(found: Repository) -> None:
    from rich.table import Table

    table = Table("model", "run by", "batch", "in", "out")
    table.columns[0].no_wrap = True  # requests name it
    for row in found.to_dict()["models"]:
        inputs, outputs = ("\n".join(row[side]) for side in ("inputs", "outputs"))
        platform = row["platform"].partition("_")[0]
        table.add_row(row["name"], platform, str(row["max_batch_size"] or "-"), inputs, outputs)
    console().print(table)
    for note in found.notes:
        say(note)
    say(f"{found.path}: {len(found.models)} models; tritonserver --model-repository={found.path}")
