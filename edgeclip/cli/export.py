"""`edgeclip export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeclip.cli.common import console, emit, json_option, notes

if TYPE_CHECKING:
    from edgeclip.export.api import ExportReport

EXAMPLES = """\b
Examples:
  edgeclip export hf:openai/clip-vit-base-patch32 -o clip-b32
  edgeclip export openclip:ViT-B-32/laion2b_s34b_b79k -o b32 --images photos/
  edgeclip export ./my-checkpoint -o mine --target portable --store fp16
  edgeclip export ./my-checkpoint -o mine --uint8 --token-merging 8 --token-merging 16
  edgeclip export ./my-checkpoint -o wide --resolution 256x320
  edgeclip export hf:openai/clip-vit-base-patch16 -o boxes --regions --resolution 448
  edgeclip export ./my-checkpoint -o mine --images photos/ --precision int8 --budget cosine=0.999
  edgeclip export ./my-mixture -o mine --images photos/ --moe gather,dense
  edgeclip export ./my-checkpoint -o mine --json > report.json
"""


@click.command(epilog=EXAMPLES)
@click.argument("spec")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the bundle to make."
)
@click.option(
    "--target", "targets", multiple=True, default=("all",), show_default=True,
    help="What the graphs are for; may be repeated: portable, onnxruntime, tensorrt10.3, tensorrt10.16, all.",
)  # fmt: skip
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Folder of pictures to compare on. Default: made-up ones.",
)
@click.option("--texts", type=click.Path(path_type=Path), help="File of texts to compare on, one a line.")
@click.option(
    "--tolerance", type=float, help="Largest difference to the source. Default: 1e-6 absolute in fp32."
)
@click.option(
    "--store",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Weights in the files.",
)
@click.option(
    "--uint8", is_flag=True,
    help="Add image variants that take (N, H, W, 3) bytes and normalise in the graph.",
)  # fmt: skip
@click.option(
    "--token-merging", "token_merging", multiple=True, type=click.IntRange(min=1), metavar="R",
    help="Add image variants that merge R tokens away in each block; may be repeated. Pays from a few hundred tokens on.",
)  # fmt: skip
@click.option(
    "--resolution", metavar="SIZE",
    help="Picture size: 256, or 256x320 (height first). Position embeddings are resampled. Default: the source's own.",
)  # fmt: skip
@click.option(
    "--regions", is_flag=True,
    help="Add a dense map and boxes pooled from it, so that regions can be embedded and classified without a detector.",
)  # fmt: skip
@click.option(
    "--moe", "moe", metavar="FORMS",
    help="How mixtures of experts are written: dense, gather and capacity, with commas between. Default: as the targets need it.",
)  # fmt: skip
@click.option(
    "--moe-drop", "moe_drop", type=float, metavar="SHARE",
    help="Largest share of an expert's tokens that finds no place in the form capacity, measured on --images and --texts. Default: 0.005.",
)  # fmt: skip
@click.option(
    "--precision", "methods", multiple=True,
    help="Compress too: int8, int8-dynamic, fp16, bf16, fp8, int4; may be repeated. As `edgeclip compress`, with --images and --texts.",
)  # fmt: skip
@click.option(
    "--budget", "budgets", multiple=True,
    help="What compressing may lose: cosine=0.999, distance=0.05, top1=-0.3 or recall=-0.5. Default: distance=0.10.",
)  # fmt: skip
@click.option("--revision", help="Branch, tag or commit of a Hub repository.")
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="Vocabulary file to use instead of the source's own."
)
@click.option("--allow-pickle", is_flag=True, help="Read .bin and .pt weights too (tensors only).")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the comparison.")
@click.option("--overwrite", is_flag=True, help="Replace what lies at the output.")
@click.option("--keep-failed", is_flag=True, help="Keep a bundle that fails its checks, at OUTPUT.failed.")
@json_option
def command(
    spec: str,
    output: Path,
    targets: tuple[str, ...],
    images: Path | None,
    texts: Path | None,
    tolerance: float | None,
    store: str,
    uint8: bool,
    token_merging: tuple[int, ...],
    resolution: str | None,
    regions: bool,
    moe: str | None,
    moe_drop: float | None,
    methods: tuple[str, ...],
    budgets: tuple[str, ...],
    revision: str | None,
    tokenizer: Path | None,
    allow_pickle: bool,
    threads: int | None,
    overwrite: bool,
    keep_failed: bool,
    as_json: bool,
) -> None:
    """Turn a trained model into a verified bundle.

    SPEC is hf:ORG/NAME, openclip:ARCH/TAG, a local checkpoint folder, or nano. Exit code 1 when the result does not agree
    with its source, or a --precision is out of budget or not faster; then nothing is left at the output.
    """
    need_export_extra()
    from edgeclip.cli.compress import print_report, show_curve
    from edgeclip.export.api import ExportSettings, export_bundle
    from edgeclip.export.capacity import DROP
    from edgeclip.export.compress.api import CompressSettings, check_methods
    from edgeclip.export.compress.budget import parse_budgets
    from edgeclip.export.compress.together import export_compressed
    from edgeclip.export.targets import expert_forms_for, flavours_for
    from edgeclip.models.resolution import parse_size
    from edgeclip.models.sources import load_source

    flavours_for(targets)  # before minutes of work
    forms = tuple(name.strip() for name in moe.split(",")) if moe is not None else ()
    expert_forms_for(targets, forms)
    _refuse_existing(output, overwrite)
    settings = ExportSettings(
        targets,
        images,
        texts,
        tolerance,
        "fp16" if store == "fp16" else "fp32",
        uint8,
        token_merging,
        parse_size(resolution) if resolution else None,
        regions,
        threads,
        overwrite,
        keep_failed,
        revision,
        forms,
        DROP if moe_drop is None else moe_drop,
    )
    smaller = None
    if methods or budgets:
        smaller = CompressSettings(
            budgets=parse_budgets(budgets), methods=methods, images=images, texts=texts, threads=threads, overwrite=overwrite
        )  # fmt: skip
        check_methods(methods)
    screen = notes()
    with screen.status(f"load {spec}") as status:

        def tell(step: str, seconds: float | None) -> None:
            status.update(step)
            if seconds is not None:
                screen.print(f"{seconds:6.1f} s  {step}")

        source = load_source(spec, revision=revision, allow_pickle=allow_pickle, tokenizer=tokenizer)
        if smaller is None:
            report, compressed = export_bundle(source, output, settings=settings, tell=tell), None
        else:
            report, compressed = export_compressed(
                source, output, settings=settings, compress=smaller, tell=tell
            )
    if as_json:
        emit({**report.to_dict(), **({"compress": compressed.to_dict()} if compressed else {})})
        return
    if compressed:
        show_curve(compressed.points, compressed.budgets, None, as_json)
        print_report(compressed)
    _print(report)


def _print(report: ExportReport) -> None:
    from rich.table import Table

    table = Table("variant", "samples", "max abs", "rel. dist.", "cosine min", "rank", "top-1")
    table.columns[0].no_wrap = True  # an 80-column screen must not cut what tells the rows apart
    for parity in report.parities:
        figures = parity.fidelity
        if figures is None:  # a graph that says how tokens are routed: equal, or the export would have failed
            continue
        top1 = "-" if figures.top1_agreement is None else f"{figures.top1_agreement:.0%}"
        table.add_row(
            parity.variant, str(figures.samples), f"{figures.max_abs:.1e}", f"{figures.relative_distance:.1e}",
            f"{figures.cosine_min:.7f}", f"{figures.rank_agreement:.0%}", top1,
        )  # fmt: skip
    screen = console()
    screen.print(table)
    for line in report.experts:
        screen.print(line)
    for parity in report.parities:
        if parity.fidelity is not None and parity.fidelity.near_ties:
            near = parity.fidelity.near_ties
            screen.print(
                f"{parity.variant}: {near} more samples hold a token within 1e-05 of taking another expert"
            )
    size = sum(entry.size for entry in report.bundle.manifest.files.values())
    screen.print(f"{report.bundle.root}: {size / 1e6:.1f} MB, {sum(report.seconds.values()):.0f} s, verified")
    licence = report.bundle.manifest.licence
    notes().print("; ".join([f"licence of the weights: {licence.weights}", *licence.warnings]))


def _refuse_existing(output: Path, overwrite: bool) -> None:
    from edgeclip.errors import InputError

    if output.exists() and not overwrite:
        raise InputError(
            f"{output}: already exists. Choose another place, or pass --overwrite to replace it."
        )


def need_export_extra(what: str = "export", *, torch: bool = True) -> None:
    """One line instead of an ImportError where PyTorch or onnx is missing. `torch=False`: finished graphs are rewritten without it."""
    from importlib.util import find_spec

    from edgeclip.errors import MissingExtraError

    for module in (*(("torch", "onnxscript") if torch else ()), "onnx", "onnx_ir", "onnxruntime"):
        if module not in sys.modules and find_spec(module) is None:
            raise MissingExtraError(
                f"{what} needs {module}, which is not installed. Run: pip install 'edgeclip[export]'"
            )
