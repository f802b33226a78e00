"""`edgeclip experts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import console, emit, json_option, notes
from edgeclip.cli.export import need_export_extra
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from edgeclip.export.compress.expert_curve import ExpertPoint
    from edgeclip.models.expert_use import ExpertsSeen, Tower
    from edgeclip.models.fewer_experts import Fewer
    from edgeclip.models.source import Source

EXAMPLES = """\b
Examples:
  edgeclip experts ./clip-moe --images photos/                       the use of each expert, block by block
  edgeclip experts ./clip-moe --images photos/ --curve --picture curve.svg
  edgeclip experts ./clip-moe --images photos/ --keep 3 -o clip-moe-3
  edgeclip experts ./clip-moe --images photos/ --prune-below 0.05 -o smaller
  edgeclip experts ./clip-moe --images photos/ --merge-above 0.98 -o smaller
  edgeclip experts ./clip-moe --images photos/ --keep 2 --merge -o clip-moe-2
  edgeclip export clip-moe-2 -o clip-2
"""


@click.command(epilog=EXAMPLES)
@click.argument("spec")
@click.option(
    "--images", type=click.Path(path_type=Path),
    help="Folder of pictures that stand for those you will have; up to 256 are used.",
)  # fmt: skip
@click.option(
    "--texts", type=click.Path(path_type=Path), help="File of texts, one a line. Default: built-in ones."
)
@click.option("--keep", type=click.IntRange(min=1), help="Keep so many experts in each block: the most used.")
@click.option("--merge", is_flag=True, help="With --keep: merge the most alike, and drop none.")
@click.option(
    "--prune-below", type=float, metavar="SHARE", help="Drop experts with a smaller share of their block's choices."
)  # fmt: skip
@click.option(
    "--merge-above", type=float, metavar="LIKENESS",
    help="Merge experts of a block whose outputs are this alike; 1 is equal.",
)  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the smaller source to make.")
@click.option(
    "--curve", is_flag=True,
    help="Measure every number that a block may keep, dropped and merged: half of the samples are counted, half compared.",
)  # fmt: skip
@click.option("--picture", type=click.Path(path_type=Path), help="With --curve: draw it into this .svg file.")
@click.option("--overwrite", is_flag=True, help="Replace what lies at the output.")
@click.option("--revision", help="Branch, tag or commit of a Hub repository.")
@click.option("--allow-pickle", is_flag=True, help="Read .bin and .pt weights too (tensors only).")
@json_option
def command(
    spec: str, images: Path | None, texts: Path | None, keep: int | None, merge: bool, prune_below: float | None,
    merge_above: float | None, output: Path | None, curve: bool, picture: Path | None, overwrite: bool,
    revision: str | None, allow_pickle: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show which experts are used; drop or merge the others.

    SPEC is a model as `edgeclip export` takes it, whose towers have experts. Without an action the use of each expert is printed: its
    share of the choices of tokens that reach an embedding. --keep, --prune-below and --merge-above write a source folder.
    """
    _check_wishes(keep, merge, prune_below, merge_above, output, curve, picture, overwrite)
    _check_source(spec)
    need_export_extra("experts")
    from edgeclip.models.expert_use import expert_use
    from edgeclip.models.fewer_experts import check_mixtures
    from edgeclip.models.sources import load_source

    screen = notes()
    with screen.status(f"open {spec}") as status:
        source = load_source(spec, revision=revision, allow_pickle=allow_pickle)
        layers = check_mixtures(source)
        samples = _samples(source, images, texts)
        points: list[ExpertPoint] = []
        if curve:
            from edgeclip.export.compress.expert_curve import expert_curve

            seen, points = expert_curve(source, samples, status.update)
        else:
            status.update("count what is chosen")
            seen = expert_use(source.model, samples)
        fewer = _fewer(source, seen, keep, merge, prune_below, merge_above)
        if fewer is not None and output is not None:
            status.update(f"write {output}")
            _save(fewer.source, output, overwrite)
    if picture is not None:
        from edgeclip.export.compress.expert_picture import draw_experts
        from edgeclip.files import write_file

        write_file(picture, draw_experts(points))
    top_k = {name: layer.top_k for name, layer in layers.items()}
    if as_json:
        emit(_record(seen, top_k, points, fewer, output))
    else:
        _print(seen, top_k, points, fewer, output)


def _check_wishes(
    keep: int | None, merge: bool, below: float | None, above: float | None, output: Path | None, curve: bool,
    picture: Path | None, overwrite: bool,
) -> None:  # fmt: skip
    """Raise what is wrong with the command line before anything is loaded."""
    actions = [
        name
        for name, value in (("--keep", keep), ("--prune-below", below), ("--merge-above", above))
        if value is not None
    ]
    if len(actions) > 1:
        raise click.UsageError(f"{' and '.join(actions)}: expected one of them.")
    if merge and keep is None:
        raise click.UsageError("--merge says how --keep gets there: pass both, or --merge-above.")
    if actions and output is None:
        raise click.UsageError(f"{actions[0]}: Missing option '-o' / '--output'.")
    if output is not None and not actions:
        raise click.UsageError(
            "-o: nothing to write. Pass --keep, --prune-below or --merge-above, which make a smaller model."
        )
    if output is not None and output.exists() and not overwrite:
        raise InputError(
            f"{output}: already exists. Choose another place, or pass --overwrite to replace it."
        )
    if picture is not None and not curve:
        raise click.UsageError("--picture draws the curve: pass --curve, too.")
    if picture is not None and picture.suffix.lower() != ".svg":
        raise InputError(f"--picture {picture}: expected a name that ends in .svg.")


def _check_source(spec: str) -> None:
    """Raise InputError for a bundle, whose graphs are finished."""
    path = Path(spec).expanduser()
    if (path / "bundle.json").is_file() or (path.is_file() and path.suffix == ".zip"):
        raise InputError(
            f"{spec}: is a bundle, whose graphs are finished. Pass the source that it was exported from, and export the result; "
            "`edgeclip inspect --experts` shows the use of a bundle's experts."
        )


def _samples(source: Source, images: Path | None, texts: Path | None) -> dict[Tower, Tensor]:
    """Inputs of each tower with mixtures.

    Raises:
        InputError: no pictures for an image tower with mixtures, or samples for a tower without.
    """
    import torch

    from edgeclip.export.samples import pictures_in, pixels_of
    from edgeclip.models.expert_use import towers_with_experts

    towers, found = towers_with_experts(source.model), dict["Tower", "Tensor"]()
    if "image" in towers:
        if images is None:
            raise InputError(
                "--images: missing. The image tower has experts, and which of them are used only pictures like yours can say."
            )
        assert source.preprocessing is not None
        found["image"] = torch.from_numpy(pixels_of(pictures_in(images), source.preprocessing))
    elif images is not None:
        raise InputError("--images: the image tower has no experts, so that pictures say nothing. Drop it.")
    if "text" in towers:
        found["text"] = _ids(source, texts)
    elif texts is not None:
        raise InputError("--texts: the text tower has no experts, so that texts say nothing. Drop it.")
    return found


def _ids(source: Source, texts: Path | None) -> Tensor:
    """(N, L) ids of a file's lines, or of built-in texts."""
    import tempfile

    import torch

    from edgeclip.export.samples import TEXTS, encode, texts_in

    assert source.text is not None
    lines = TEXTS if texts is None else texts_in(texts)
    with tempfile.TemporaryDirectory(prefix="edgeclip-") as folder:
        tokenizer = Path(folder) / "tokenizer.json"
        tokenizer.write_bytes(source.tokenizer_json)
        return torch.from_numpy(encode(lines, tokenizer, source.text).input_ids).long()


def _fewer(
    source: Source,
    seen: Mapping[str, ExpertsSeen],
    keep: int | None,
    merge: bool,
    below: float | None,
    above: float | None,
) -> Fewer | None:
    from edgeclip.models.fewer_experts import merged, pruned

    if keep is not None:
        return (merged if merge else pruned)(source, seen, keep=keep)
    if below is not None:
        return pruned(source, seen, below=below)
    return None if above is None else merged(source, seen, above=above)


def _save(source: Source, output: Path, overwrite: bool) -> None:
    from edgeclip.models.sources import save_source

    save_source(
        output, model=source.model, preprocessing=source.preprocessing, text=source.text,
        tokenizer_json=source.tokenizer_json, licence=source.licence, templates=source.templates, overwrite=overwrite,
    )  # fmt: skip


def _record(
    seen: Mapping[str, ExpertsSeen], top_k: Mapping[str, int], points: Sequence[ExpertPoint], fewer: Fewer | None,
    output: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """One JSON object of everything."""
    use = {
        name: {"tokens": found.tokens, "top_k": top_k[name], "use": [round(v, 6) for v in found.use.tolist()]}
        for name, found in seen.items()
    }
    record: dict[str, Any] = {"use": use, "curve": [point.to_dict() for point in points]}
    if fewer is not None:
        made = {name: [list(group) for group in groups] for name, groups in fewer.groups.items()}
        record |= {"path": str(output), "experts": made, "digest": fewer.source.digest}
    return record


def _print(
    seen: Mapping[str, ExpertsSeen], top_k: Mapping[str, int], points: Sequence[ExpertPoint], fewer: Fewer | None,
    output: Path | None,
) -> None:  # fmt: skip
    from rich.table import Table

    screen = console()
    most = max(len(found.use) for found in seen.values())
    table = Table("block", "takes", "tokens", *(f"expert {i}" for i in range(most)))
    for name, found in seen.items():
        shares = [f"{share:.1%}" for share in found.use.tolist()]
        table.add_row(name.removesuffix(".mlp"), str(top_k[name]), str(found.tokens), *shares)
    screen.print(table)
    if points:
        screen.print(_curve_table(points))
    if fewer is not None:
        for name, groups in fewer.groups.items():
            parts = ", ".join("+".join(map(str, group)) for group in groups)
            dense = "; dense now" if len(groups) == 1 else ""
            screen.print(f"{name.removesuffix('.mlp')}: experts {parts}{dense}")
        screen.print(f"{output}: written, digest {fewer.source.digest[:12]}")


def _curve_table(points: Sequence[ExpertPoint]) -> Any:
    from rich.table import Table

    towers = list(points[0].fidelity)
    heads = [f"{tower} {what}" for tower in towers for what in ("cosine", "rel. dist.", "neighbours")]
    table = Table("experts", "made by", "M weights", "M active", "MB fp32", "MB int8", *heads)
    for point in points:
        sizes, cells = point.sizes, []
        for tower in towers:
            found = point.fidelity[tower]
            cells += [
                f"{found.cosine_mean:.5f}",
                f"{found.relative_distance:.4f}",
                f"{found.rank_agreement:.1%}",
            ]
        counts = (sizes.parameters, sizes.active, sizes.fp32_bytes, sizes.int8_bytes)
        table.add_row(str(point.keep), point.way, *(f"{count / 1e6:.2f}" for count in counts), *cells)
    return table
