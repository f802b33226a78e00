"""Rank the pictures of a folder by a text: the runtime inside a program of one's own.

python rank_folder.py pictures "a vehicle"
"""

import sys
from pathlib import Path

import edgeclip


def rank(folder: Path, query: str, bundle: str = "nano") -> list[tuple[float, Path]]:
    """Cosine and path of every picture that can be read, best first."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    with edgeclip.load(bundle) as model:
        wanted = model.embed_texts(query)  # one text in, one (D,) unit vector out
        found = []
        for path, vector in zip(paths, model.embed_each(paths), strict=True):
            if isinstance(vector, edgeclip.EdgeClipError):  # one bad file never stops the rest
                print(f"skipped: {vector}", file=sys.stderr)
            else:
                found.append((float(vector @ wanted), path))
    return sorted(found, reverse=True)


if __name__ == "__main__":
    for cosine, path in rank(Path(sys.argv[1]), sys.argv[2])[:3]:
        print(f"{cosine:.3f}  {path}")
