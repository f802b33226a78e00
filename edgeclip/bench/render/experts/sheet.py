"""The use of experts as one picture, for a place that shows no HTML."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from edgeclip.bench.render.experts import words
from edgeclip.bench.render.experts.shown import TILE, Shown, strip
from edgeclip.bench.render.experts.tint import colour, ink_on, plain, rgb, tinted
from edgeclip.bench.render.words import clean, percent

WIDTH, EDGE, LINE = 1240, 24, 22  # pixels
CELL, ROW, LEFT = 84, 26, 90  # of the heat map
GROUND, INK, QUIET, RULE, HEAT, BAD = (255, 255, 255), (27, 31, 36), (87, 96, 106), (208, 215, 222), (11, 98, 176), (161, 19, 27)  # fmt: skip
LONGEST = 40  # letters of a file's name


class _Sheet:
    """A sheet that grows downwards as things are put on it."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (WIDTH, 400), GROUND)
        self.y = EDGE

    def room(self, height: int) -> ImageDraw.ImageDraw:
        """What draws on the next `height` pixels."""
        if self.y + height + EDGE > self._image.height:
            taller = Image.new("RGB", (WIDTH, max(self.y + height + EDGE, self._image.height * 2)), GROUND)
            taller.paste(self._image)
            self._image = taller
        return ImageDraw.Draw(self._image)

    def say(self, line: str, size: int = 15, ink: tuple[int, int, int] = INK) -> None:
        """Text in as many lines as it needs."""
        font = ImageFont.load_default(size=size)
        for part in _wrapped(clean(line), font, WIDTH - 2 * EDGE):
            self.room(size + 7).text((EDGE, self.y), part, fill=ink, font=font)
            self.y += size + 7

    def paste(self, image: Image.Image, x: int, y: int) -> None:
        """At a place for which there is room."""
        self._image.paste(image, (x, y))

    def png(self) -> bytes:
        """The file."""
        buffer = io.BytesIO()
        self._image.crop((0, 0, WIDTH, self.y + EDGE)).save(buffer, "PNG")
        return buffer.getvalue()


def of_use(name: str, towers: Sequence[Shown]) -> bytes:
    """A PNG file. `name`: of the model."""
    sheet = _Sheet()
    sheet.say(f"Experts of {name}", 26)
    for shown in towers:
        sheet.say(words.in_brief(shown.use), ink=QUIET)
        for line in words.warnings(shown.use):
            sheet.say(line, ink=BAD)
        _heat(sheet, shown)
        _maps(sheet, shown)
        _patches(sheet, shown)
    return sheet.png()


def _heat(sheet: _Sheet, shown: Shown) -> None:
    use, font = shown.use, ImageFont.load_default(size=14)
    sheet.y += 8
    draw = sheet.room(ROW * (len(use.blocks) + 1) + 8)
    left = EDGE + LEFT
    most = max(float(use.choices.max()), 1e-9)
    for expert in range(max(use.experts)):
        _mark(draw, left + CELL * expert + CELL // 2 - 14, sheet.y, expert)
    draw.text((left + CELL * max(use.experts) + 10, sheet.y + 4), "balance", fill=QUIET, font=font)
    sheet.y += ROW
    for i, block in enumerate(use.blocks):
        draw.text((EDGE, sheet.y + 5), f"block {block}", fill=QUIET, font=font)
        for expert in range(use.experts[i]):
            share, x = float(use.choices[i, expert]), left + CELL * expert
            strength = 0.6 * share / most
            fill = tuple(round((1 - strength) * 255 + strength * c) for c in HEAT)
            edge = BAD if use.samples and share == 0 else RULE
            draw.rectangle((x + 1, sheet.y + 1, x + CELL - 2, sheet.y + ROW - 2), fill=fill, outline=edge)
            draw.text((x + CELL / 2, sheet.y + ROW / 2), words.part(share), fill=INK, font=font, anchor="mm")
        draw.text(
            (left + CELL * max(use.experts) + 10, sheet.y + 5),
            percent(float(use.balance[i])),
            fill=QUIET,
            font=font,
        )
        sheet.y += ROW
    sheet.y += 8


def _maps(sheet: _Sheet, shown: Shown) -> None:
    if not shown.pictures:
        return
    sheet.say("Who takes which patch", 20)
    sheet.say(words.OF_PICTURES, ink=QUIET)
    font = ImageFont.load_default(size=13)
    columns = len(shown.blocks) + 1
    side = (WIDTH - 2 * EDGE) // columns - 8
    for seen in shown.pictures:
        assert seen.routing.grid is not None
        images = [plain(seen.pixels, seen.routing.grid)]
        images += [tinted(seen.pixels, seen.routing.map_of(block)) for block in shown.blocks]
        height = round(side * images[0].height / images[0].width)
        draw = sheet.room(height + LINE)
        name = clean(seen.name)
        names = [
            name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…",
            *(f"block {block}" for block in shown.blocks),
        ]
        for i, (image, caption) in enumerate(zip(images, names, strict=True)):
            x = EDGE + i * (side + 8)
            sheet.paste(image.resize((side, height), Image.Resampling.LANCZOS), x, sheet.y)
            draw.text((x, sheet.y + height + 3), caption, fill=QUIET, font=font)
        sheet.y += height + LINE + 6


def _patches(sheet: _Sheet, shown: Shown) -> None:
    if not shown.patches:
        return
    sheet.say("What each expert took most surely", 20)
    for block in shown.blocks:
        sheet.say(f"block {block}", ink=QUIET)
        for expert in range(shown.use.experts[shown.use.blocks.index(block)]):
            tiles = shown.patches.get((block, expert), ())
            draw = sheet.room(TILE + 4)
            _mark(draw, EDGE, sheet.y + TILE // 2 - 12, expert)
            if tiles:
                sheet.paste(strip([pixels for *_, pixels in tiles]), EDGE + 40, sheet.y)
            else:
                font = ImageFont.load_default(size=14)
                draw.text((EDGE + 40, sheet.y + TILE // 2 - 8), "took no patch", fill=QUIET, font=font)
            sheet.y += TILE + 4


def _mark(draw: ImageDraw.ImageDraw, x: int, y: int, expert: int) -> None:
    css = colour(expert)
    draw.rounded_rectangle((x, y, x + 28, y + 22), 4, fill=rgb(css))
    draw.text(
        (x + 14, y + 11), str(expert), fill=ink_on(css), font=ImageFont.load_default(size=14), anchor="mm"
    )


def _wrapped(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in line.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
