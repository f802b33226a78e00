"""CSV and TSV: a header line, a column that names the picture, a column with its caption."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from edgeclip.errors import TrainingError
from edgeclip.models.training.data.listing import CAPTION_COLUMNS, IMAGE_COLUMNS, Listing, pick_column


def matches(location: str) -> bool:
    """Whether the name ends in .csv or .tsv."""
    return Path(location).suffix.lower() in (".csv", ".tsv")


def open_pairs(location: str) -> Listing:
    """Read the whole list; the separator (comma, tab, semicolon) is the one that the header uses most.

    Raises:
        TrainingError: the file cannot be read, or lacks one of the columns.
    """
    path = Path(location)
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            header = stream.readline()
            stream.seek(0)
            reader = csv.DictReader(stream, delimiter=max(",\t;", key=header.count))
            names = reader.fieldnames or []
            image = pick_column(names, IMAGE_COLUMNS, location)
            caption = pick_column(names, CAPTION_COLUMNS, location)
            return Listing(path, _rows(reader, image, caption))
    except (OSError, csv.Error) as error:
        raise TrainingError(f"{location}: cannot be read ({error}).") from error


def _rows(reader: csv.DictReader[str], image: str, caption: str) -> Iterator[tuple[str, list[str]]]:
    for row in reader:
        yield (row[image] or "").strip(), [row[caption] or ""]
