"""What may be asked of an index or a folder: the options of `edgeclip search`, as one `Asking`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from edgeclip.errors import InputError

if TYPE_CHECKING:
    from edgeclip.runtime.index.queries import Query

F = TypeVar("F", bound=Callable[..., Any])
_Weighted = tuple[tuple[str, float], ...]
_SAID = (click.STRING, click.FLOAT)


@dataclass(frozen=True)
class Asking:
    """A question, and how it is answered."""

    texts: tuple[str, ...]
    images: tuple[str, ...]
    likes: tuple[str, ...]  # keys of items that are stored
    not_texts: tuple[str, ...]
    not_images: tuple[str, ...]
    weighted: _Weighted  # texts with weights of their own, below 0: not wanted
    weighted_images: _Weighted
    image_weight: float
    negative_weight: float
    centre: bool
    top_k: int
    threshold: float | None
    where: str | None
    exact: bool
    group: bool

    def __post_init__(self) -> None:
        if not self.needs_model and not self.likes:
            raise click.UsageError("What to look for? Pass a TEXT, --image FILE, --like KEY or --not TEXT.")
        if any(not text.strip() for text in (*self.texts, *self.not_texts)):
            raise InputError("TEXT: expected a text, got an empty one.")

    @property
    def needs_model(self) -> bool:
        """Whether anything must be embedded."""
        return any(
            (self.texts, self.images, self.not_texts, self.not_images, self.weighted, self.weighted_images)
        )

    def query(self, likes: Sequence[Any]) -> Query:
        """The question, given the vectors of `likes`."""
        from edgeclip.runtime.index.queries import Query

        wanted, unwanted = _by_sign(self.weighted)
        like, unlike = _by_sign(self.weighted_images)
        return Query(
            [*self.texts, *wanted],
            [*self.images, *likes, *like],
            [*self.not_texts, *unwanted],
            [*self.not_images, *unlike],
            image_weight=self.image_weight,
            negative_weight=self.negative_weight,
            centre=self.centre,
        )


def asking_options(command: F) -> F:
    """The options of an `Asking`, which the command gets as `asking`."""

    @wraps(command)
    def parsed(**given: Any) -> Any:
        own = {name: given.pop(name) for name in Asking.__dataclass_fields__}
        return command(asking=Asking(**own), **given)

    found = cast("F", parsed)
    for option in reversed(_OPTIONS):
        found = option(found)
    return found


def _by_sign(weighted: _Weighted) -> tuple[_Weighted, _Weighted]:
    return (
        tuple((term, weight) for term, weight in weighted if not weight < 0),  # NaN too: it is refused there
        tuple((term, -weight) for term, weight in weighted if weight < 0),
    )


_OPTIONS = (
    click.option("--image", "images", multiple=True, metavar="FILE", help="A picture to look for; repeat for more."),
    click.option("--like", "likes", multiple=True, metavar="KEY", help="An item that is stored, to find more like it; needs no model."),
    click.option("--not", "not_texts", multiple=True, metavar="TEXT", help="What is not wanted; repeat for more."),
    click.option("--not-image", "not_images", multiple=True, metavar="FILE", help="A picture of what is not wanted."),
    click.option("--weigh", "weighted", type=_SAID, multiple=True, metavar="TEXT WEIGHT", help="A text with a weight of its own; below 0: not wanted."),
    click.option("--weigh-image", "weighted_images", type=_SAID, multiple=True, metavar="FILE WEIGHT", help="The same of a picture."),
    click.option("--image-weight", type=click.FloatRange(min=0), default=0.7, show_default=True, help="Of pictures, where a text weighs 1."),
    click.option("--negative-weight", type=click.FloatRange(min=0), default=0.5, show_default=True, help="Of what is not wanted, times that."),
    click.option("--centre", is_flag=True, help="Take the means of texts and of pictures off first: for an index that holds both."),
    click.option("-k", "--top-k", type=click.IntRange(min=1), default=10, show_default=True, help="How many to show."),
    click.option("--threshold", type=click.FloatRange(-1, 1), help="Least score, a cosine."),
    click.option("--where", metavar="FILTER", help="A condition on what is stored beside the vectors, e.g. \"year >= 2020 and tag in ('a', 'b')\"."),
    click.option("--exact", is_flag=True, help="Compare every vector, also where a graph would be walked."),
    click.option("--group", is_flag=True, help="Of regions: the best one of each picture."),
)  # fmt: skip
