"""Export and compress in one: the float bundle in between is written beside the output, and goes again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgeclip.export.api import ExportReport, ExportSettings, export_bundle
from edgeclip.export.compress.api import CompressReport, CompressSettings, check_output, compress_bundle
from edgeclip.models.source import Source


def export_compressed(
    source: Source,
    output: Path,
    *,
    settings: ExportSettings,
    compress: CompressSettings,
    tell: Callable[[str, float | None], None] = lambda name, seconds: None,
) -> tuple[ExportReport, CompressReport]:
    """Export a source, then compress what came of it under a budget; the result holds the float variants, too.

    Args:
        output: the folder to make. It appears whole, or not at all.
        settings: of the export; `overwrite` is taken from `compress`.
        tell: called with each step's name when it starts (None) and with its seconds when it ends.
    Raises:
        As export_bundle and compress_bundle.
    """
    check_output(output, compress.overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.float.") as scratch:
        exported = export_bundle(
            source, Path(scratch) / output.name, settings=replace(settings, overwrite=False), tell=tell
        )
        compressed = compress_bundle(exported.bundle, output, settings=compress, tell=tell)
    return replace(exported, bundle=compressed.bundle), compressed
