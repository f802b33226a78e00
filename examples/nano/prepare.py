"""Gather the pictograms and clip art that nano is trained on into two files: training.npy and training.json.

Fetch the packages first (see README.md here), then:

    python examples/nano/prepare.py DOWNLOADS OUTPUT [SIDE]

SIDE, of the stored pictures, is 64 pixels; scenes for the detector are composed from pictures of 128.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

SIDE = 64  # pixels of the stored pictures
UNTRAINED_NAMES = 200  # never shown in any style, nor as a text
NOTO = ("noto", "noto-v1")  # one family: a picture held out of one is held out of both
UNSEEN = "twemoji"  # evaluate.py alone reads it
CLIP_ART = "openclipart/usr/share/openclipart/png"
FLAGS = 9  # emojibase's group of flags: nobody can guess the flag of a country from its name

Names = dict[str, tuple[str, tuple[str, ...], int]]  # code -> name, tags, group
Drawing = Path | str  # a picture file, or the text of an SVG


@dataclass(frozen=True)
class Item:
    """One stored picture; the i-th item describes the i-th picture."""

    style: str
    key: str  # emoji: code points; clip art: path
    name: str
    tags: tuple[str, ...]
    split: str  # "train", "validation" (a tenth of Noto) or "untrained" (held-out names, every style)


def fraction(key: str) -> float:
    """A fixed pseudo-random number in [0, 1) for a key."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 2**32


def code(name: str) -> str:
    """Code points of a file name or hexcode, without the variation selector that packages disagree about."""
    return "-".join(part for part in name.lower().split("-") if part != "fe0f")


def emoji_names(downloads: Path) -> Names:
    """Every emoji that can stand alone, skin tones left out."""
    data = json.loads((downloads / "emojibase-data/en/data.json").read_text())
    return {
        code(entry["hexcode"]): (entry["label"].lower(), tuple(entry.get("tags", ())), entry["group"])
        for entry in data
        if entry.get("group") is not None
    }


def files(folder: str) -> Callable[[Path, Names], Iterator[tuple[str, Drawing]]]:
    """A style that comes as one file an emoji, named by its code points."""
    return lambda downloads, names: (
        (code(path.stem), path) for path in sorted((downloads / folder).iterdir())
    )


def iconify(package: str) -> Callable[[Path, Names], Iterator[tuple[str, Drawing]]]:
    """A style that comes as one JSON of SVG bodies, named in words: emojibase's name of it or Unicode's."""

    def squeeze(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower())

    def drawings(downloads: Path, names: Names) -> Iterator[tuple[str, Drawing]]:
        known = {squeeze(unicodedata.name(chr(int(key, 16)), "")): key for key in names if "-" not in key}
        known |= {squeeze(name): key for key, (name, _, _) in names.items()}
        data = json.loads((downloads / package / "icons.json").read_text())
        side = data["width"]
        for name, icon in sorted(data["icons"].items()):
            if key := known.get(squeeze(name)):
                body = icon["body"].replace("currentColor", "#000")
                yield key, f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}">{body}</svg>'

    return drawings


def flags(downloads: Path, names: Names) -> Iterator[tuple[str, Drawing]]:
    """Flags of countries, named by ISO 3166 letters, which an emoji spells in regional indicators."""
    for path in sorted((downloads / "flag-icons/flags/4x3").glob("??.svg")):
        yield "-".join(f"{0x1F1E6 + ord(letter) - ord('a'):x}" for letter in path.stem), path


# All permissive, see README.md.
STYLES: dict[str, Callable[[Path, Names], Iterator[tuple[str, Drawing]]]] = {
    "noto": files("emoji-datasource-google/img/google/64"),
    "noto-v1": iconify("noto-v1"),
    "fluent-3d": files("fluent-emoji-3d/assets"),
    "fluent-flat": files("fluent-emoji-flat/assets"),
    "fluent-modern": files("fluent-emoji-modern/assets"),
    "fluent-black": iconify("fluent-emoji-high-contrast"),
    "fxemoji": iconify("fxemoji"),
    "flag-icons": flags,
}


def untrained(names: Names) -> set[str]:
    """Codes of the names that are never trained: a fixed choice among everything but flags."""
    candidates = sorted(
        (key for key, (_, _, group) in names.items() if group != FLAGS),
        key=lambda key: fraction("untrained " + key),
    )
    return set(candidates[:UNTRAINED_NAMES])


def render(drawing: Drawing, side: int = SIDE) -> NDArray[np.uint8]:
    """Any picture file or SVG -> (side, side, 4) uint8 RGBA, proportions kept, centred on transparency."""
    if isinstance(drawing, str) or drawing.suffix == ".svg":
        text = drawing if isinstance(drawing, str) else drawing.read_text()
        data = bytes(resvg_py.svg_to_bytes(svg_string=text, width=2 * side, skip_system_fonts=True))
        picture = Image.open(io.BytesIO(data)).convert("RGBA")
    else:
        picture = Image.open(drawing).convert("RGBA")
    box = picture.getchannel("A").getbbox()
    if box is not None and (box[2] - box[0] < picture.width / 2 and box[3] - box[1] < picture.height / 2):
        picture = picture.crop(box)  # clip art drawn into a corner of an A4 page
    # Resample with premultiplied alpha: transparent pixels have no colour of their own.
    picture = picture.convert("RGBa")
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(picture, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(canvas)


def emoji_items(
    downloads: Path, style: str, source: Callable[[Path, Names], Iterator[tuple[str, Drawing]]]
) -> Iterator[tuple[Item, Drawing]]:
    """The emoji of one style. What is held out of Noto for validation is left out of the styles drawn from it."""
    names = emoji_names(downloads)
    held_out = untrained(names)
    for key, drawing in source(downloads, names):
        if key not in names:
            continue  # skin tones and parts
        name, tags, _ = names[key]
        split = "untrained" if key in held_out else "train"
        if style in NOTO and split == "train" and fraction("validation " + key) < 0.1:
            if style != "noto":
                continue
            split = "validation"
        yield Item(style, key, name, tags, split), drawing


def clip_art_items(downloads: Path) -> Iterator[tuple[Item, Drawing]]:
    """Clip art whose file name holds English words; the folders serve as tags, exact duplicates are dropped.

    The pictures that the documentation shows (demo-pictures.txt) are left out, under whatever name they appear.
    """
    words = {
        word for word in Path("/usr/share/dict/words").read_text().split() if word.islower() and len(word) > 2
    }
    root = downloads / CLIP_ART
    shown = (Path(__file__).parent / "demo-pictures.txt").read_text().splitlines()
    seen = {hashlib.sha256((root / line.split()[0]).read_bytes()).hexdigest() for line in shown}
    for path in sorted(root.rglob("*.png")):
        key = path.relative_to(root).as_posix()
        if key.startswith(("special/", "unsorted/duplicates")) or path.stat().st_size > 1_000_000:
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        parts = [part for part in re.split(r"[^a-z]+", path.stem.lower()) if part in words]
        if not parts or digest in seen:
            continue
        seen.add(digest)
        folders = tuple(part.replace("_", " ") for part in Path(key).parts[:-1] if part != "unsorted")
        yield Item("clip-art", key, " ".join(parts[:3]), folders, "train"), path


def store(items: Iterable[tuple[Item, Drawing]], output: Path, name: str, side: int = SIDE) -> None:
    """Render all and write `<name>.npy` (N, side, side, 4) uint8 and `<name>.json`."""
    kept, pictures, skipped = [], [], 0
    for item, drawing in items:
        try:
            pictures.append(render(drawing, side))
        except Exception as error:  # a broken file in other people's packages is counted, not fatal
            skipped += 1
            print(f"skipped {item.style} {item.key}: {error}", file=sys.stderr)
            continue
        kept.append(asdict(item))
    output.mkdir(parents=True, exist_ok=True)
    np.save(output / f"{name}.npy", np.stack(pictures))
    (output / f"{name}.json").write_text(json.dumps(kept, ensure_ascii=False))
    counts = Counter(f"{item['style']} {item['split']}" for item in kept)
    print(f"{name}: {len(kept)} pictures, {skipped} skipped; {dict(counts)}")


def main() -> None:
    downloads, output = Path(sys.argv[1]), Path(sys.argv[2])
    side = int(sys.argv[3]) if len(sys.argv) > 3 else SIDE
    styles = [emoji_items(downloads, style, source) for style, source in STYLES.items()]
    store(chain(*styles, clip_art_items(downloads)), output, "training", side)
    twemoji = files("emoji-datasource-twitter/img/twitter/64")
    if (downloads / "emoji-datasource-twitter").exists():
        store(emoji_items(downloads, UNSEEN, twemoji), output, "unseen", side)


if __name__ == "__main__":
    main()
