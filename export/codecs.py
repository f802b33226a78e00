"""Codecs into a bundle: at export from the rows of the comparison, later from anybody's pictures and texts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgeclip.bundle import Bundle, Manifest
from edgeclip.export.derive import derive_bundle
from edgeclip.files import write_file
from edgeclip.runtime.codecs import Codecs
from edgeclip.runtime.codecs.fit import MIN_VECTORS, fit_codecs
from edgeclip.runtime.codecs.kinds import Array, Kind

log = logging.getLogger(__name__)

FILE = "codecs.safetensors"


def write_codecs(folder: Path, manifest: Manifest, images: Array | None, texts: Array | None) -> Manifest:
    """Fit codecs at export where there are enough pictures, and write them into the bundle's folder.

    Args:
        images, texts: (N, D) and (M, D) unit rows; None: no such tower. Too few texts are left out.
    Returns:
        the manifest, naming the file if there is one.
    """
    have: dict[Kind, Array] = {}
    if images is not None and len(images) >= MIN_VECTORS["image"]:
        have["image"] = images
        if texts is not None and len(texts) >= MIN_VECTORS["text"]:
            have["text"] = texts
    if not have:
        count, least = 0 if images is None else len(images), MIN_VECTORS["image"]
        log.info("codecs are not fitted: %d pictures, %d are needed (--images)", count, least)
        return manifest
    write_file(folder / FILE, fit_codecs(have, manifest.model_id).to_bytes())
    return replace(manifest, codecs=FILE)


def add_codecs(
    bundle: Bundle,
    output: Path,
    vectors: Mapping[Kind, Array],
    *,
    widths: Sequence[int] | None = None,
    overwrite: bool = False,
    threads: int | None = None,
) -> tuple[Bundle, Codecs]:
    """Write a bundle that has codecs fitted to these vectors, in place of any that it had.

    Args:
        vectors: unit rows of this model's pictures (N, D), texts (M, D) or both; see `fit_codecs`.
        widths: of the truncated codecs; None: a half, a quarter and an eighth of D.
        overwrite: replace what lies at the output.
        threads: of the engine that verifies the result.
    Raises:
        InputError: vectors that cannot be used, or an output that is there.
        CheckFailed: the result does not verify.
    """
    facts = bundle.manifest
    codecs = fit_codecs(vectors, facts.model_id, widths)
    codecs.require(facts.model_id, facts.embedding_dim)
    made = derive_bundle(
        bundle,
        output,
        [],
        files={FILE: codecs.to_bytes()},
        changes={"codecs": FILE},
        record={"codecs": dict(codecs.measured)},
        overwrite=overwrite,
        threads=threads,
    )
    return made, codecs
