"""The oldest onnxruntime that a portable variant promises to open with: every graph is opened there, and its values compared.

EDGECLIP_FLOOR names a folder that holds onnxruntime 1.23.2; `make test` makes one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeclip.export.onnx_graph import write
from edgeclip.export.passes import store_fp16
from edgeclip.export.targets import FLAVOURS
from tests.export.traced import EVERY_SHAPE, KINDS, PIXELS, TOLERANCE, captured, make_ids, traced, wanted

FLOOR = os.environ.get("EDGECLIP_FLOOR", "")
VERSION = "1.23.2"

# Runs each graph at batches of 1, 3 and 8; prints its name and the largest difference to the wanted rows.
PROGRAM = """
import sys
from pathlib import Path
import numpy, onnxruntime
assert onnxruntime.__version__ == sys.argv[2], onnxruntime.__version__
for graph in sorted(Path(sys.argv[1]).glob("*.onnx")):
    case = numpy.load(graph.with_suffix(".npz"))
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    worst = 0.0
    for n in (1, 3, 8):
        rows = session.run(None, {name: case["inputs"][:n]})[0]
        worst = max(worst, float(numpy.abs(rows - case["want"][:n]).max()))
    print(graph.stem, worst)
"""


@pytest.mark.skipif(
    not Path(FLOOR or "-").is_dir(), reason="EDGECLIP_FLOOR names no folder; `make test` makes one"
)
def test_every_graph_opens_and_agrees_in_the_oldest_onnxruntime(tmp_path: Path) -> None:
    tolerance = {}
    for shape in EVERY_SHAPE:
        for kind in KINDS:
            source, towers = traced(shape, kind)
            inputs = PIXELS if kind == "image" else make_ids(8)
            for flavour, graph in towers.items():
                name = f"{shape}-{kind}-{flavour}"
                (tmp_path / f"{name}.onnx").write_bytes(graph.SerializeToString())
                np.savez(tmp_path / f"{name}.npz", inputs=inputs, want=wanted(source, kind, inputs))
                tolerance[name] = TOLERANCE
    source, tower, graph = captured("openai", "image")
    model, _ = write(graph, tower, FLAVOURS["decomposed"], (store_fp16,))
    (tmp_path / "fp16.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    np.savez(tmp_path / "fp16.npz", inputs=PIXELS, want=wanted(source, "image", PIXELS))
    tolerance["fp16"] = 5e-3  # what rounding the weights moves

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), VERSION],
        env={**os.environ, "PYTHONPATH": str(Path(FLOOR).resolve())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {name: float(worst) for name, worst in (line.split() for line in done.stdout.splitlines())}
    assert found.keys() == tolerance.keys()
    assert {name: worst for name, worst in found.items() if not worst <= tolerance[name]} == {}


def test_what_each_flavour_asks_for_is_what_is_tested() -> None:
    for flavour in FLAVOURS.values():
        assert VERSION.startswith(flavour.requires["onnxruntime"] + ".")
        assert int(flavour.requires["ir"]) == flavour.ir_version
    portable = FLAVOURS["decomposed"]
    assert portable.ir_version <= 10
    assert portable.opset <= 20
