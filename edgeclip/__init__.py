"""edgeclip: CLIP-family models on devices. Export, prove, pack; run without PyTorch.

    import edgeclip

    with edgeclip.load("nano") as model:
        print(model.classify("cat.png", ["a cat", "a dog", "a bicycle"]).label)

Nothing heavy is imported until it is used: `import edgeclip` loads no numpy, onnxruntime, OpenCV or torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgeclip.errors import (
    BundleError,
    CheckFailed,
    EdgeClipError,
    EngineError,
    InputError,
    MissingExtraError,
    SourceError,
    TrainingError,
)
from edgeclip.version import __version__

if TYPE_CHECKING:
    from edgeclip.bundle import Bundle, open_bundle
    from edgeclip.export.prepare import build_engines
    from edgeclip.runtime.detect.examples import Example
    from edgeclip.runtime.detect.proposals import Proposals
    from edgeclip.runtime.detect.tiling import Tiling
    from edgeclip.runtime.detections import Detections
    from edgeclip.runtime.experts import ExpertUse, Routing
    from edgeclip.runtime.index.index import Index
    from edgeclip.runtime.index.queries import Query
    from edgeclip.runtime.index.types import Hit, IndexSettings, Item, Origin
    from edgeclip.runtime.labels import LabelPack
    from edgeclip.runtime.model import Model, load
    from edgeclip.runtime.regions import Answer, Tokens
    from edgeclip.runtime.results import Classification
    from edgeclip.runtime.tensorrt.settings import BuildSettings
    from edgeclip.runtime.video.draw import draw
    from edgeclip.runtime.video.stream import stream

_LATE = {
    "Answer": "edgeclip.runtime.regions",
    "BuildSettings": "edgeclip.runtime.tensorrt.settings",
    "build_engines": "edgeclip.export.prepare",
    "Bundle": "edgeclip.bundle",
    "open_bundle": "edgeclip.bundle",
    "Classification": "edgeclip.runtime.results",
    "Detections": "edgeclip.runtime.detections",
    "ExpertUse": "edgeclip.runtime.experts",
    "Example": "edgeclip.runtime.detect.examples",
    "Hit": "edgeclip.runtime.index.types",
    "Index": "edgeclip.runtime.index.index",
    "IndexSettings": "edgeclip.runtime.index.types",
    "Item": "edgeclip.runtime.index.types",
    "LabelPack": "edgeclip.runtime.labels",
    "Model": "edgeclip.runtime.model",
    "load": "edgeclip.runtime.model",
    "Origin": "edgeclip.runtime.index.types",
    "Proposals": "edgeclip.runtime.detect.proposals",
    "Query": "edgeclip.runtime.index.queries",
    "Tiling": "edgeclip.runtime.detect.tiling",
    "draw": "edgeclip.runtime.video.draw",
    "Routing": "edgeclip.runtime.experts",
    "stream": "edgeclip.runtime.video.stream",
    "Tokens": "edgeclip.runtime.regions",
}

__all__ = [
    "Answer",
    "BuildSettings",
    "Bundle",
    "BundleError",
    "CheckFailed",
    "Classification",
    "Detections",
    "EdgeClipError",
    "EngineError",
    "Example",
    "ExpertUse",
    "Hit",
    "Index",
    "IndexSettings",
    "InputError",
    "Item",
    "LabelPack",
    "MissingExtraError",
    "Model",
    "Origin",
    "Proposals",
    "Query",
    "Routing",
    "SourceError",
    "Tiling",
    "Tokens",
    "TrainingError",
    "__version__",
    "build_engines",
    "draw",
    "load",
    "open_bundle",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'edgeclip' has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
