"""What a bundle can do, for messages about what it cannot."""

from __future__ import annotations

from edgeclip.bundle import Manifest

# kinds of towers -> what they do
_DO = {
    "image": "classify and embed pictures",
    "detector": "detect",
    "regions": "embed and classify regions",
    "text": "embed texts",
}


def abilities(manifest: Manifest) -> str:
    """ "; it can detect and embed texts", or "" for a bundle without any tower."""
    found = [what for kind, what in _DO.items() if any(v.tower == kind for v in manifest.variants)]
    first, last = found[:-1], found[-1:]
    return f"; it can {' and '.join([', '.join(first), *last] if first else last)}" if found else ""
