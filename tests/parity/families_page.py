"""docs/families.md, made of the table of families and the figures of the last full-depth run.

python -m tests.parity.families_page
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeclip.files import write_file
from edgeclip.models.families import FAMILIES, Family
from tests.families import rows

ROOT = Path(__file__).parents[2]
FIGURES, PAGE = ROOT / "benchmarks" / "results" / "families.json", ROOT / "docs" / "families.md"

HEAD = """# Families

Every dual encoder that edgeclip reads, and how far that is proven. Made by `python -m tests.parity.families_page` from the table
behind `edgeclip sources` and from the figures of `make parity`: do not edit it.

`edgeclip sources SPEC` loads one source and says how it is read. What decides is always the source's own config: activation, pooling,
norms, preprocessing and tokenizer are never taken from a name. What a family lacks is refused in one line.

## Measured

Whole models with random weights, written by the library in question (transformers, open_clip with timm). *image*, *text*: largest
difference of unit vectors between edgeclip's source model and that library's, the same pixels and ids on both sides, fp32. *graph*:
the exported graphs, in every flavour, against the source model. *distance*: relative distance of the same. Export includes tracing,
comparison and verification, without loading; in seconds of processor time, all threads together. {machine}.

| Family | Model | Parameters | image | text | graph | distance | Bundle | Export |
|---|---|---|---|---|---|---|---|---|
"""

DETECTORS = """
### Detectors

*boxes*, *scores*: largest difference of a corner, as a share of the side, and of a score (0-1) of every region for five texts, between
edgeclip's source model and transformers; *graph*: the same between the exported graphs and transformers itself.

| Model | boxes | scores | graph: boxes | graph: scores |
|---|---|---|---|---|
"""


def page(figures: Mapping[str, Any]) -> str:
    """The whole page as Markdown."""
    machines = sorted({entry["machine"] for entry in figures.values()})
    return (
        HEAD.replace("{machine}", "; ".join(machines))
        + _measured(figures)
        + _detectors(figures)
        + "".join(map(_family, FAMILIES))
    )


def _measured(figures: Mapping[str, Any]) -> str:
    order = [family.name for family in FAMILIES]
    lines = []
    for name, family in sorted(rows().items(), key=lambda row: order.index(row[1])):
        if (entry := figures.get(name)) is not None:
            apart = (
                entry[key]
                for key in ("image_max_abs", "text_max_abs", "graph_max_abs", "graph_relative_distance")
            )
            lines.append(
                f"| {family} | {name} | {entry['parameters'] / 1e6:.0f} M | {' | '.join(map(_figure, apart))} "
                f"| {entry['bundle_mb']:,.0f} MB | {entry['export_cpu_s']:.0f} s |\n"
            )
    return "".join(lines)


def _detectors(figures: Mapping[str, Any]) -> str:
    keys = ("box_max_abs", "score_max_abs", "graph_box_max_abs", "graph_score_max_abs")
    lines = [
        f"| {name} | {' | '.join(_figure(entry[key]) for key in keys)} |\n"
        for name, entry in figures.items()
        if keys[0] in entry
    ]
    return DETECTORS + "".join(lines) if lines else ""


def _figure(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"


def _family(family: Family) -> str:
    facts = {
        "Read from": ", ".join(family.formats),
        "Towers": f"{family.image}; {family.text}",
        "Pooling (image/text)": ", ".join(f"`{pooling}`" for pooling in family.pooling),
        "Scores": family.scores,
        "Activation": family.activation,
        "Pictures": family.pictures,
        "Texts": family.texts,
    }
    lines = "".join(f"| {label} | {value} |\n" for label, value in facts.items())
    return f"\n## {family.name}\n\n| | |\n|---|---|\n{lines}{_known(family)}"


def _known(family: Family) -> str:
    if not family.known:
        return ""
    lines = (f"| `{known.spec}` | {known.stated} |\n" for known in family.known)
    return f"\n| Published weights | Licence of the weights |\n|---|---|\n{''.join(lines)}"


def main() -> None:
    """Write the page."""
    write_file(PAGE, page(json.loads(FIGURES.read_text())))


if __name__ == "__main__":
    main()
