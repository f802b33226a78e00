"""Every family at full depth and full vocabulary: against its own library, then through the export. `make parity`.

The figures of each model go into families.json in the folder that EDGECLIP_PARITY_REPORT names; tests/parity/families_page.py
makes docs/families.md of them. `-k NAME` renews the figures of one model.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from edgeclip.export.api import export_bundle
from edgeclip.files import write_file
from edgeclip.models.sources import load_source
from tests.families import models
from tests.models.test_families import check_towers
from tests.parity.report import machine

MODELS = models()
# More than a billion parameters: the library's model, ours and the graph being written do not fit into 24 GB together. The same
# families are here in smaller sizes.
HUGE = {"ViT-gopt-16-SigLIP2-256", "xlm-roberta-large-ViT-H-14", "metaclip2-H/14-quickgelu"}


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in MODELS if name not in HUGE])
def test_full_depth(name: str, tmp_path: Path) -> None:
    written = MODELS[name](tmp_path / "source", "full")
    source = load_source(written.spec, **(written.load or {}))
    image, text = check_towers(source, written)
    parameters = sum(parameter.numel() for parameter in source.model.parameters())
    towers = {"image": written.image is not None, "text": written.text is not None}
    del written
    gc.collect()
    start, busy = time.perf_counter(), time.process_time()
    report = export_bundle(source, tmp_path / "bundle")
    export_s, export_cpu_s = time.perf_counter() - start, time.process_time() - busy
    figures = [parity.fidelity for parity in report.parities if parity.fidelity is not None]
    record(
        name,
        {
            "parameters": parameters,
            "image_max_abs": image if towers["image"] else None,
            "text_max_abs": text if towers["text"] else None,
            "export_s": round(export_s, 1),
            "export_cpu_s": round(export_cpu_s, 1),
            "bundle_mb": round(sum(entry.size for entry in report.bundle.manifest.files.values()) / 1e6, 1),
            "graph_max_abs": max(fidelity.max_abs for fidelity in figures),
            "graph_relative_distance": max(fidelity.relative_distance for fidelity in figures),
            "machine": machine(),
        },
    )
    shutil.rmtree(tmp_path)  # some are gigabytes


def record(name: str, figures: dict[str, Any]) -> None:
    """Put one model's figures beside those of the others."""
    folder = os.environ.get("EDGECLIP_PARITY_REPORT")
    if not folder:
        return
    path = Path(folder) / "families.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    write_file(path, json.dumps({**known, name: figures}, indent=1, sort_keys=True) + "\n")
