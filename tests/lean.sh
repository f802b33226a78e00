#!/bin/sh
# Build the wheel, install it alone with its runtime extra into a fresh environment, and classify a picture with it.
set -eu
python=$1
rm -rf .venv-lean dist
.venv/bin/python -m build --wheel --outdir dist . >dist.log 2>&1 || { cat dist.log; exit 1; }
rm -f dist.log
# Compiling what nobody imports, and a pip of its own, would take half a minute of the processor.
$python -m venv --without-pip .venv-lean
.venv/bin/python -m pip --python .venv-lean/bin/python install --quiet --disable-pip-version-check --no-compile -c constraints.txt "$(ls dist/*.whl)[cpu]"
cd dist # away from the source tree: only what the wheel holds can be imported
../.venv-lean/bin/python - ../examples/pictures <<'END'
import importlib.util
import sys
from pathlib import Path

import edgeclip

assert ".venv-lean" in edgeclip.__file__, edgeclip.__file__
for name in ("torch", "transformers", "onnx", "timm"):
    assert importlib.util.find_spec(name) is None, f"{name} is installed beside the lean runtime"
pictures = Path(sys.argv[1])
with edgeclip.load("nano") as model:
    found = model.classify(pictures / "apple.png", ["an apple", "a bicycle", "a cat"])
assert found.label == "an apple", found
print(f"lean wheel: {found.label} {found.score:.2f}")
END
