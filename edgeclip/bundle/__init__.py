"""The artifact: a folder (or zip) of graphs with a manifest that says what they are and how well they agree."""

from edgeclip.bundle.manifest import (
    Axes,
    Detection,
    DetectionFidelity,
    Experts,
    Fidelity,
    FileEntry,
    Licence,
    Manifest,
    Port,
    Preprocessing,
    Scores,
    TextSettings,
    Variant,
    identity,
)
from edgeclip.bundle.store import Bundle, check_hashes, open_bundle, pack_zip, seal

__all__ = [
    "Axes",
    "Bundle",
    "Detection",
    "DetectionFidelity",
    "Experts",
    "Fidelity",
    "FileEntry",
    "Licence",
    "Manifest",
    "Port",
    "Preprocessing",
    "Scores",
    "TextSettings",
    "Variant",
    "check_hashes",
    "identity",
    "open_bundle",
    "pack_zip",
    "seal",
]
