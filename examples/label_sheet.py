"""Draw a folder's pictures on one sheet, each with its two best labels: so docs/labels.png was made, from held-out emoji.

python label_sheet.py pictures labels.txt sheet.png
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import edgeclip

SIDE, MARGIN, COLUMNS = 150, 14, 7  # pixels, pixels, pictures in a row
WHITE, BLACK, GREY = (255, 255, 255), (20, 20, 20), (120, 120, 120)


def sheet(paths: list[Path], labels: list[str], bundle: str = "nano") -> Image.Image:
    """Classify and draw. Raises InputError for a picture that cannot be read."""
    with edgeclip.load(bundle) as model:
        results = model.classify(paths, labels, top_k=2)
    cell = (SIDE + MARGIN, SIDE + 3 * MARGIN + 8)
    rows = -(-len(paths) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * cell[0] + MARGIN, rows * cell[1] + MARGIN), WHITE)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for i, (path, result) in enumerate(zip(paths, results, strict=True)):
        left, top = MARGIN + i % COLUMNS * cell[0], MARGIN + i // COLUMNS * cell[1]
        picture = Image.open(path).convert("RGBA")
        picture.thumbnail((SIDE, SIDE))
        canvas.paste(
            picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2), picture
        )
        for line, (label, score) in enumerate(result.ranked()):
            place = (left + SIDE // 2, top + SIDE + 6 + 18 * line)
            draw.text(place, f"{label} {score:.2f}", GREY if line else BLACK, font, anchor="mt")
    return canvas


if __name__ == "__main__":
    lines = Path(sys.argv[2]).read_text().splitlines()
    pictures = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_file())
    sheet(pictures, [line for line in lines if line and not line.startswith("#")]).save(sys.argv[3])
