"""A few pairs on their way through the teachers, before hours are spent: is a teacher sound, can the data be read?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import InputError, TrainingError
from edgeclip.export.distill.reinforce_settings import ReinforceSettings
from edgeclip.export.distill.teachers import Teachers, Vectors
from edgeclip.models.training.data import Pairs
from edgeclip.models.training.data.views import view

PROBED = 16  # pairs that are embedded
CONSTANT = 1e-6  # 1 - cosine to the mean, of all rows: below it they are one embedding

log = logging.getLogger(__name__)


def probe(teachers: Teachers, pairs: Pairs, settings: ReinforceSettings, bank: Sequence[str] = ()) -> int:
    """Embed a few pairs, to find an unsound teacher or unreadable data before hours are spent.

    Returns:
        How many pairs could be read.
    Raises:
        TrainingError: no pair can be read, or a member's embeddings are not finite or all alike.
    """
    views: list[list[NDArray[np.float32]]] = []
    texts: list[str] = list(bank[:PROBED])
    for index in range(min(4 * PROBED, len(pairs.keys))):
        try:
            picture, captions = pairs.read(index)
            views.append(views_of(teachers, picture, pairs.keys[index], settings, 1)[0])
        except (InputError, OSError) as error:
            log.debug("unreadable: %s", error)
            continue
        texts += map(clean, captions[:1])
        if len(views) == PROBED:
            break
    if not views:
        raise TrainingError(
            f"{pairs.keys[0]}: unreadable, and so are the pairs behind it. Is the data still there?"
        )
    by_spec = dict(zip(teachers.specs, map(np.stack, zip(*views, strict=True)), strict=True))
    for member in teachers.members:
        spec = member.record.spec
        _check_sound(member.images(by_spec[member.spec]), spec, "pictures", differ=True)
        _check_sound(member.texts(texts), spec, "texts", differ=len(set(texts)) > 1)
    return len(views)


def clean(text: str) -> str:
    """Without halves of characters, which JSON can hold and UTF-8 cannot."""
    return text.encode(errors="replace").decode()


def views_of(
    teachers: Teachers, picture: Any, key: str, settings: ReinforceSettings, count: int
) -> list[list[NDArray[np.float32]]]:
    """`count` views, each for every preprocessing of the teachers. Raises InputError: the picture cannot be decoded."""
    how, seed = settings.augmentation, settings.seed
    return [
        [view(picture, spec, how, seed, key, number) for spec in teachers.specs] for number in range(count)
    ]


def _check_sound(rows: Vectors, spec: str, what: str, *, differ: bool) -> None:
    if not np.isfinite(rows).all():
        raise TrainingError(
            f"teacher {spec}: embeddings of {what} are not finite. Its weights are damaged, or device=cpu helps."
        )
    mean = rows.mean(axis=0)
    alike = rows @ mean / max(float(np.linalg.norm(mean)), 1e-12)
    if differ and len(rows) > 1 and (float(1 - alike.min()) < CONSTANT or not rows.any()):
        raise TrainingError(
            f"teacher {spec}: embeddings of {len(rows)} {what} are all alike. Nothing can be learnt from it: name one that was trained."
        )
