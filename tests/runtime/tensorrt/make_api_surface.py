"""Writes api_surface.json: which attributes each release of TensorRT's Python packages has. No library and no GPU is needed.

    pip download --no-deps -d wheels tensorrt-cu12-bindings==10.3.0      (and each other release)
    python tests/runtime/tensorrt/make_api_surface.py wheels/*.whl

A wheel of bindings holds one extension module. What it wants of TensorRT's libraries are a dozen functions, which are made up
here (gcc), so that the module imports and can be listed; none is ever called.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PLACE = Path(__file__).with_name("api_surface.json")
# What the project touches, or might. Layers and plugins are left out.
CLASSES = [
    "Builder", "BuilderFlag", "ComputeCapability", "DataType", "ErrorCode", "EngineInspector",
    "ExecutionContextAllocationStrategy", "HardwareCompatibilityLevel", "IAttention", "IAttentionInputLayer", "IBuilderConfig", "ICudaEngine",
    "IExecutionContext", "IHostMemory", "ILayer", "ILogger", "INetworkDefinition", "IOptimizationProfile",
    "IProgressMonitor", "IRuntimeCache", "IRuntimeConfig", "ISerializationConfig", "ITensor",
    "ITimingCache", "LayerInformationFormat", "LayerType", "MemoryPoolType",
    "NetworkDefinitionCreationFlag", "OnnxParser", "OnnxParserFlag", "OnnxParserRefitter", "ParserError",
    "ProfilingVerbosity", "Refitter", "Runtime", "SerializationFlag", "TensorIOMode", "TensorLocation",
    "CudaGraphStrategy",
]  # fmt: skip
LIST = """
import importlib.machinery, importlib.util, json, sys
loader = importlib.machinery.ExtensionFileLoader(sys.argv[1], sys.argv[2])
module = importlib.util.module_from_spec(importlib.util.spec_from_loader(sys.argv[1], loader))
loader.exec_module(module)
public = lambda thing: [name for name in dir(thing) if not name.startswith("_")]
print(json.dumps({name: public(getattr(module, name)) for name in public(module) if isinstance(getattr(module, name), type)}))
"""


def surface(wheel: Path) -> tuple[str, dict[str, list[str]]]:
    """("tensorrt 10.3.0", class -> attributes)."""
    package, version = wheel.name.split("-")[:2]
    library = "tensorrt-rtx" if "rtx" in package else "tensorrt"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(wheel) as packed:
            inside = next(entry for entry in packed.namelist() if entry.endswith(".so"))
            module = Path(packed.extract(inside, folder))
        wanted = _run("nm", "-D", "--undefined-only", str(module)).split()
        functions = [
            word for word in wanted if word.endswith("_INTERNAL") or word.startswith(("get", "initLib"))
        ]
        source = folder / "none.c"
        source.write_text(
            "".join(f"void *{word}() {{ return 0; }}\n" for word in functions if "@" not in word)
        )
        needed = [
            line.split("[")[1].rstrip("]")
            for line in _run("readelf", "-d", str(module)).splitlines()
            if "NEEDED" in line
        ]
        for file in needed:
            if file.startswith(("libnv", "libtensorrt")):
                _run("gcc", "-shared", "-fPIC", "-o", str(folder / file), str(source))
        found = _run(sys.executable, "-c", LIST, module.stem, str(module), LD_LIBRARY_PATH=str(folder))
    return f"{library} {version}", json.loads(found)


def main(wheels: list[str]) -> None:
    """Write the table: for each class the attributes of all releases, and those of some with the releases that have them."""
    found = dict(sorted((surface(Path(wheel)) for wheel in wheels), key=lambda pair: _number(pair[0])))
    table = {}
    for name in sorted(CLASSES):
        having = {release: set(classes[name]) for release, classes in found.items() if name in classes}
        every = set.intersection(*having.values()) if len(having) == len(found) else set()
        some = sorted(set().union(*having.values()) - every)
        table[name] = {
            "all": sorted(every),
            "some": {word: [release for release in having if word in having[release]] for word in some},
        }
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in table.items())
    PLACE.write_text(f'{{"releases": {json.dumps(list(found))},\n"classes": {{\n{lines}\n}}}}\n')


def _number(release: str) -> tuple[str, list[int]]:
    library, version = release.split()
    return library, [int(part) for part in version.split(".")]


def _run(*command: str, **environment: str) -> str:
    return subprocess.run(
        command, env={**os.environ, **environment}, check=True, capture_output=True, text=True
    ).stdout


if __name__ == "__main__":
    main(sys.argv[1:])
