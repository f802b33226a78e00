"""Boxes that people drew: COCO instances and LVIS v1, read and checked, without a library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.evaluate.splits import LVIS, OV_COCO

if TYPE_CHECKING:
    from typing import TypeGuard


@dataclass(frozen=True)
class Image:
    """One annotated picture."""

    id: int
    name: str  # of its file, below the folder of pictures
    size: tuple[int, int]  # (H, W)
    absent: tuple[int, ...] = ()  # LVIS: categories known not to be in it
    partial: tuple[int, ...] = ()  # LVIS: categories of which not all were drawn


@dataclass(frozen=True)
class Category:
    """One class."""

    id: int
    name: str
    group: str = ""  # of the split: "base", "novel"; "rare", "common", "frequent"


@dataclass(frozen=True, eq=False)
class Boxes:
    """B boxes of any pictures."""

    images: NDArray[np.int64]  # (B,) ids
    categories: NDArray[np.int64]  # (B,) ids
    xywh: NDArray[np.float64]  # (B, 4) left, top, width, height, pixels

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Annotations:
    """A file of annotations."""

    path: Path
    images: tuple[Image, ...]
    categories: tuple[Category, ...]  # by their ids
    boxes: Boxes
    areas: NDArray[np.float64]  # (B,) pixels: of the object, not of its box, where the file says
    crowd: NDArray[np.bool_]  # (B,) a group that no detection has to match, and whose matches are no mistakes
    lvis: bool  # federated: only what is known of a picture is judged

    @property
    def names(self) -> list[str]:
        """Of the categories, in their order."""
        return [category.name for category in self.categories]

    @property
    def groups(self) -> tuple[str, ...]:
        """Of the split, in the order of its definition; () without one."""
        return tuple(dict.fromkeys(c.group for c in sorted(self.categories, key=_order) if c.group))

    def first(self, count: int) -> Annotations:
        """Of the first so many pictures."""
        return self._of(self.images[:count], self.categories)

    def split(self, name: str) -> Annotations:
        """Its classes put into the groups of a split.

        Args:
            name: "ov-coco": its 65 classes, and the pictures that hold one of them, as the published files have it; "lvis": groups
                by frequency; "none".
        Raises:
            InputError: the file lacks what the split needs.
        """
        if name == "lvis" and not self.lvis:
            raise InputError(
                f'{self.path}: --split lvis expects the "frequency" of each category and the "neg_category_ids" of each image, as LVIS v1 has them.'
            )
        if name != "ov-coco":
            return self
        known = {category.name: category for category in self.categories}
        if missing := [label for group in OV_COCO.values() for label in group if label not in known]:
            raise InputError(
                f"{self.path}: --split ov-coco expects COCO's classes; {', '.join(missing[:5])} {'is' if len(missing) == 1 else 'are'} not among its {len(known)}."
            )
        chosen = tuple(
            replace(known[label], group=group) for group, labels in OV_COCO.items() for label in labels
        )
        chosen = tuple(sorted(chosen, key=lambda category: category.id))
        held = set(self.boxes.images[np.isin(self.boxes.categories, [c.id for c in chosen])].tolist())
        return self._of(tuple(image for image in self.images if image.id in held), chosen)

    def _of(self, images: tuple[Image, ...], categories: tuple[Category, ...]) -> Annotations:
        rows = np.isin(self.boxes.images, [image.id for image in images])
        rows &= np.isin(self.boxes.categories, [category.id for category in categories])
        boxes = Boxes(self.boxes.images[rows], self.boxes.categories[rows], self.boxes.xywh[rows])
        return replace(
            self,
            images=images,
            categories=categories,
            boxes=boxes,
            areas=self.areas[rows],
            crowd=self.crowd[rows],
        )


def _order(category: Category) -> int:
    names = [*OV_COCO, *LVIS]
    return names.index(category.group) if category.group in names else 0


def read_annotations(path: Path) -> Annotations:
    """COCO instances or LVIS v1.

    Raises:
        InputError: the file cannot be read, or an entry is not what the format says; names the entry.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not all(
        isinstance(data.get(k), list) for k in ("images", "annotations", "categories")
    ):
        raise InputError(
            f'{path}: expected COCO annotations, an object with the lists "images", "annotations" and "categories".'
        )
    lvis = _is_lvis(data)
    images = tuple(_image(path, i, image, lvis) for i, image in enumerate(data["images"]))
    named = [_category(path, i, category, lvis) for i, category in enumerate(data["categories"])]
    categories = tuple(sorted(named, key=lambda category: category.id))
    _check_unique(path, "images", [image.id for image in images])
    _check_unique(path, "categories", [category.id for category in categories])
    _check_unique(path, "categories", [category.name for category in categories])
    if not images or not categories:
        raise InputError(f"{path}: expected at least one image and one category.")
    rows = data["annotations"]
    boxes = boxes_of(path, "annotations", rows, images, categories)
    areas = boxes.xywh[:, 2] * boxes.xywh[:, 3]
    for i, row in enumerate(rows):
        if "area" in row:
            areas[i] = number_of(path, f"annotations[{i}].area", row["area"])
    crowd = np.array([bool(row.get("iscrowd", 0)) for row in rows], bool)
    return Annotations(path, images, categories, boxes, areas, crowd, lvis)


def read_json(path: Path) -> Any:
    """Raises InputError: the file cannot be read, or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}). Expected annotations in JSON."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON ({error}). Copy or export it again.") from error


def boxes_of(
    path: Path,
    where: str,
    rows: Iterable[Any],
    images: Iterable[Image],
    categories: Iterable[Category],
) -> Boxes:
    """The "image_id", "category_id" and "bbox" of each row.

    Args:
        where: names the rows in messages.
    Raises:
        InputError: a row that is no such object, or speaks of a picture or category that there is not.
    """
    known_images, known_categories = {i.id for i in images}, {c.id for c in categories}
    of_images: list[int] = []
    of_categories: list[int] = []
    xywh = []
    for i, row in enumerate(rows):
        place = f"{where}[{i}]"
        if not isinstance(row, dict):
            raise InputError(f"{path}: {place}: expected an object, got {row!r:.40}.")
        for key, known, found in (
            ("image_id", known_images, of_images),
            ("category_id", known_categories, of_categories),
        ):
            if not _whole(row.get(key)) or row[key] not in known:
                raise InputError(
                    f"{path}: {place}.{key}: expected the id of {'an image' if key == 'image_id' else 'a category'} of the annotations, got {row.get(key)!r:.40}."
                )
            found.append(row[key])
        box = row.get("bbox")
        if not isinstance(box, list) or len(box) != 4:
            raise InputError(f"{path}: {place}.bbox: expected [left, top, width, height], got {box!r:.60}.")
        box = [number_of(path, f"{place}.bbox", value) for value in box]
        if box[2] < 0 or box[3] < 0:
            raise InputError(
                f"{path}: {place}.bbox: expected a width and height of 0 or more, got {box}. It is no xyxy."
            )
        xywh.append(box)
    return Boxes(
        np.array(of_images, np.int64),
        np.array(of_categories, np.int64),
        np.array(xywh, np.float64).reshape(-1, 4),
    )


def _is_lvis(data: Mapping[str, Any]) -> bool:
    keyed = ((data["categories"], "frequency"), (data["images"], "neg_category_ids"))
    return all(rows and all(isinstance(row, dict) and key in row for row in rows) for rows, key in keyed)


def _image(path: Path, i: int, image: Any, lvis: bool) -> Image:
    where = f"{path}: images[{i}]"
    if not isinstance(image, dict) or not _whole(image.get("id")):
        raise InputError(f'{where}: expected an object with an integer "id", got {image!r:.60}.')
    name = image.get("file_name") or PurePosixPath(str(image.get("coco_url", ""))).name
    if not isinstance(name, str) or not name:
        raise InputError(f'{where}: expected a "file_name" or a "coco_url".')
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise InputError(f"{where}: expected a file name below the folder of pictures, got {name!r:.80}.")
    for side in (image.get("height"), image.get("width")):
        if not _whole(side) or side < 1:
            raise InputError(f'{where}: expected "height" and "width" in pixels, got {side!r:.40}.')
    absent, partial = (
        _ids(where, key, image.get(key, [])) if lvis else ()
        for key in ("neg_category_ids", "not_exhaustive_category_ids")
    )
    return Image(image["id"], name, (image["height"], image["width"]), absent, partial)


def _ids(where: str, key: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(map(_whole, value)):
        raise InputError(f"{where}.{key}: expected a list of categories' ids, got {value!r:.60}.")
    return tuple(value)


def _category(path: Path, i: int, category: Any, lvis: bool) -> Category:
    where = f"{path}: categories[{i}]"
    if not isinstance(category, dict) or not _whole(category.get("id")):
        raise InputError(f'{where}: expected an object with an integer "id", got {category!r:.60}.')
    if not isinstance(category.get("name"), str) or not category["name"].strip():
        raise InputError(f'{where}: expected a "name", got {category.get("name")!r:.40}.')
    if not lvis:
        return Category(category["id"], category["name"])
    group = next((name for name, letter in LVIS.items() if letter == category["frequency"]), None)
    if group is None:
        raise InputError(f'{where}.frequency: expected "r", "c" or "f", got {category["frequency"]!r:.40}.')
    return Category(category["id"], category["name"], group)


def _check_unique(path: Path, what: str, values: list[Any]) -> None:
    if len(set(values)) < len(values):
        twice = next(value for i, value in enumerate(values) if value in values[:i])
        raise InputError(f"{path}: {what}: {twice!r} is there twice. Expected each once.")


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def number_of(path: Path, where: str, value: Any) -> float:
    """Raises InputError: `value` is no finite number."""
    # up to what float32 holds, as pictures' boxes are; NaN is not below it either
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e38:
        raise InputError(f"{path}: {where}: expected a finite number, got {value!r:.40}.")
    return float(value)
