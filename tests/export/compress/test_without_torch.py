"""What rewrites finished graphs needs no PyTorch: a bundle can be compressed and baked where only onnx is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edgeclip.bundle import Bundle, open_bundle

# Every look for torch fails, as where it is not installed.
PROGRAM = """
import sys
from importlib.util import find_spec
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnxscript"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import os
from edgeclip.cli import run
os.environ["EDGECLIP_CACHE"] = sys.argv[3] + "/cache"
bundle, images, out = sys.argv[1:]
methods = [part for name in ("int8", "int8-dynamic", "fp16", "fp8", "int4") for part in ("--precision", name)]
line = ["compress", bundle, "-o", out + "/small", "--images", images, "--unproven", "--budget", "distance=2", *methods]
assert run(line) == 0
if find_spec("tensorrt_rtx"):
    rtx = ["--target", "tensorrt-rtx", "--arch", "sm86", "-o", out + "/engines"]
    assert run(["build", "nano", "--tower", "text", *rtx]) == 0  # converted to fp16
assert run(["bake", out + "/small", "-o", out + "/baked", "--labels", "a cat,a dog", "--variant", "image-int8"]) == 0
"""


def test_compress_and_bake(tiny: Bundle, classes: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny.root), str(classes), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "image-int8-labels" in {
        variant.id for variant in open_bundle(tmp_path / "baked").manifest.variants
    }
