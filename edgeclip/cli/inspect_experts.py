"""`edgeclip inspect --experts`: the use of experts, counted over a folder of pictures or a file of texts, as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclip.cli.common import console, find_pictures, tracked
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from edgeclip.bench.render.experts.shown import Shown
    from edgeclip.bundle import Bundle
    from edgeclip.runtime.experts import ExpertUse
    from edgeclip.runtime.model import Model

KINDS = (".html", ".png")
MOST_BARS = 8  # experts beside whose figures there is room for a bar
BAR = 4  # its letters
EIGHTHS = " ▏▎▍▌▋▊▉"


def check_picture(place: Path | None, asked: bool) -> None:
    """Refuse what cannot be drawn before anything is counted. `asked`: whether use is counted at all. Raises InputError."""
    if place is None:
        return
    if place.suffix.lower() not in KINDS:
        raise InputError(f"--picture {place}: expected a name that ends in {' or '.join(KINDS)}.")
    if not asked:
        raise InputError("--picture: shows the use of experts. Pass --experts DIR or --texts FILE as well.")


def count(
    bundle: Bundle,
    folder: str | None,
    texts: Path | None,
    picture: Path | None,
    limit: int | None,
    threads: int | None,
    quiet: bool,
) -> list[ExpertUse]:
    """Count, and write the picture where one is wanted.

    Raises:
        InputError: a folder without pictures, none that can be used, or no texts.
        EngineError: towers without mixtures, or a bundle that does not tell who took what.
    """
    from edgeclip.runtime.experts import require_routing
    from edgeclip.runtime.model import load

    for given, tower in ((folder, "image"), (texts, "text")):
        if given is not None:
            require_routing(bundle, tower)  # before a large folder is searched
    paths = _pictures(folder, limit) if folder is not None else []
    lines = _texts(texts, limit) if texts is not None else []
    shown = []
    with load(bundle, threads=threads) as model:
        if paths:
            shown.append(_of_pictures(model, paths, picture is not None, quiet))
        if lines:
            shown.append(_of_texts(model, lines, quiet))
    if picture is not None:
        _draw(bundle.manifest.name, shown, picture)
    return [one.use for one in shown]


def _pictures(folder: str, limit: int | None) -> list[Path]:
    """All, or so many of them, spread evenly."""
    from edgeclip.bench.render.experts.shown import spread

    paths, failures = find_pictures([folder], as_json=False)
    if failures:
        raise InputError(f"--experts {failures[0][1]}")
    return list(spread(paths, limit)) if limit else paths


def _texts(place: Path, limit: int | None) -> list[str]:
    try:
        lines = place.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"--texts {place}: cannot read the file ({reason}). Expected UTF-8 text, one text a line."
        ) from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise InputError(f"--texts {place}: the file holds no text. Expected one a line.")
    return found[:limit] if limit else found


def _of_pictures(model: Model, paths: list[Path], drawn: bool, quiet: bool) -> Shown:
    from edgeclip.bench.render.experts.shown import PATCHES, Shown, collect

    items = tracked(paths, len(paths), "pictures", quiet)
    use = model.expert_use(items, keep=PATCHES if drawn else 0)
    if not use.samples:
        raise InputError(
            f"--experts: none of the {len(paths)} pictures can be used; the reasons stand above."
        )
    return collect(model, paths, use) if drawn else Shown(use)


def _of_texts(model: Model, lines: list[str], quiet: bool) -> Shown:
    from edgeclip.bench.render.experts.shown import Shown

    return Shown(model.expert_use(texts=tracked(lines, len(lines), "texts", quiet)))


def _draw(name: str, shown: list[Shown], place: Path) -> None:
    from edgeclip.bench.render.experts import page, sheet
    from edgeclip.files import write_file

    drawn: Any = page.of_use(name, shown) if place.suffix.lower() == ".html" else sheet.of_use(name, shown)
    write_file(place, drawn)


def print_use(found: list[ExpertUse]) -> None:
    """A table for each tower, and what is worth a warning."""
    from edgeclip.bench.render.experts import words

    for use in found:
        console().print(f"\n{words.in_brief(use)}")
        console().print(_table(use))
        for line in words.warnings(use):
            console().print(line, style="yellow")


def _table(use: ExpertUse) -> Table:
    from rich.table import Table

    from edgeclip.bench.render.experts.words import part
    from edgeclip.bench.render.words import percent

    experts = max(use.experts)
    table = Table("block", *(f"expert {expert}" for expert in range(experts)), "balance")
    most, plain = float(use.choices.max()) or 1.0, not console().encoding.startswith("utf")
    for i, block in enumerate(use.blocks):
        cells = []
        for share in use.choices[i, : use.experts[i]]:
            cells.append(
                f"{part(float(share)):>5}" + (f" {_bar(share / most, plain)}" if experts <= MOST_BARS else "")
            )
        cells += [""] * (experts - use.experts[i])
        table.add_row(str(block), *cells, percent(float(use.balance[i])))
    return table


def _bar(share: float, plain: bool) -> str:
    """`plain`: for a terminal that has no blocks."""
    eighths = round(8 * BAR * share)
    return "#" * round(BAR * share) if plain else ("█" * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip()
