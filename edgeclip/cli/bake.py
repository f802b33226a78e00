"""`edgeclip bake`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeclip.cli.common import emit, json_option, parse_labels
from edgeclip.cli.export import need_export_extra
from edgeclip.errors import InputError

EXAMPLES = """\b
Examples:
  edgeclip bake clip-b32/ -o shop/ --labels @labels.txt     pixels in, scores out; labels may still be changed
  edgeclip bake clip-b32/ -o shop/ --labels @labels.txt --drop-text --only-heads     the smallest, for a device
  edgeclip bake clip-b32/ -o any/ --open 256                labels come at run time, at most 256
  edgeclip bake small/ -o shop/ --pack pets.labels --variant image-int8-decomposed
  edgeclip bake owl/ -o shop/ --labels 'a cup,a hand' --drop-text --only-heads     pixels in, boxes and logits out
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="The new bundle."
)
@click.option("--labels", help="What to bake in: 'a cat,a dog', or @FILE with one label a line.")
@click.option("--label", multiple=True, help="One label; repeat for more (for labels with commas).")
@click.option("--template", multiple=True, help="Prompt with a {} for the label; repeated ones are averaged.")
@click.option(
    "--pack",
    type=click.Path(exists=True, dir_okay=False),
    help="A label pack, instead of labels: its thresholds are kept, and no text tower is needed.",
)
@click.option(
    "--variant",
    multiple=True,
    help="Variant of the image tower or the detector to build on; repeat for more. Default: the preferred one.",
)
@click.option(
    "--open",
    "places",
    type=click.IntRange(min=1),
    help="The head that takes labels at run time takes so many, padded. Default: any number.",
)
@click.option("--closed", is_flag=True, help="Leave out the head that takes labels at run time.")
@click.option("--drop-text", is_flag=True, help="Leave out the text tower and its tokenizer.")
@click.option("--only-heads", is_flag=True, help="Leave out that tower's variants that give embeddings.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads. Default: one for each physical core."
)
@json_option
def command(
    bundle: str,
    output: Path,
    labels: str | None,
    label: tuple[str, ...],
    template: tuple[str, ...],
    pack: str | None,
    variant: tuple[str, ...],
    places: int | None,
    closed: bool,
    drop_text: bool,
    only_heads: bool,
    overwrite: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Bake labels into a graph: pixels in, scores out.

    BUNDLE is a folder, a .zip of one, hf:ORG/NAME, or nano; it stays as it is. The new bundle classifies, or detects, without a text
    tower, and has a second graph whose labels come at run time. The graphs share their weights.
    """
    if pack and (labels or label or template):
        raise click.UsageError(
            "--pack brings its own labels and templates; drop --labels, --label and --template."
        )
    if closed and places:
        raise click.UsageError("--open asks for what --closed leaves out; drop one of them.")
    if output.exists() and not overwrite:
        raise InputError(
            f"{output}: already exists. Choose another place, or pass --overwrite to replace it."
        )
    need_export_extra("baking labels", torch=False)
    import edgeclip

    only_open = places is not None and not (labels or label or pack or template)
    names = [] if pack or only_open else parse_labels(labels, label)
    opened = edgeclip.open_bundle(bundle)
    baked_in = edgeclip.LabelPack.open(pack) if pack else None
    if names:
        with edgeclip.load(opened, threads=threads) as model:
            baked_in = model.make_labels(names, templates=template or None)
    from edgeclip.export.bake import bake

    found = bake(
        opened,
        output,
        baked_in,
        prompts=not closed,
        places=places,
        variants=variant,
        drop_text=drop_text,
        only_heads=only_heads,
        overwrite=overwrite,
        threads=threads,
    )
    size = sum(entry.size for entry in found.bundle.manifest.files.values())
    record = {
        "path": str(output),
        "variants": list(found.variants),
        "labels": found.labels,
        "max_cosine_difference": found.worst,
        "bytes": size,
    }
    if as_json:
        emit(record)
    else:
        what = f"{found.labels} labels, {', '.join(found.variants)}, {size / 1e6:.1f} MB"
        click.echo(f"{output}: {what}; cosines within {found.worst:.0e} of the embeddings'", err=True)
