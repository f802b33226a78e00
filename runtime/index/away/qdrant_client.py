"""Reaching Qdrant: targets, options, and its errors in one line."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from edgeclip.errors import EdgeClipError, InputError, MissingExtraError

COLLECTION = "edgeclip"  # of a folder that holds one
MEMORY = ":memory:"
_BEGUN = (".lock", "collection")  # in a folder before its meta.json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a collection is."""

    collection: str
    url: str | None = None  # of a server
    folder: str | None = None  # of this machine, or ":memory:"

    def __str__(self) -> str:
        if self.url:
            return f"qdrant:{self.url}/{self.collection}"
        return f"qdrant:{self.folder}" + (f"#{self.collection}" if self.collection != COLLECTION else "")


@dataclass(frozen=True)
class QdrantOptions:
    """What a server is told; the other two places take no notice. Raises InputError for one that cannot be used."""

    quantization: Literal["none", "int8", "binary"] = "none"
    quantile: float = 0.99  # "int8": components beyond are cut, so that one large dimension does not cost the others their steps
    always_ram: bool = True  # quantised vectors stay in memory
    on_disk: bool = False  # the originals do not
    rescore: bool = True  # candidates are compared again by their originals
    oversampling: float = 3.0  # so many times k candidates; "binary" wants 10 (recall 1.00 beside 0.55 of 2)
    connectivity: int = 16
    expansion_add: int = 128
    expansion_search: int = 64

    def __post_init__(self) -> None:
        if self.quantization not in ("none", "int8", "binary"):
            raise InputError(f"quantization {self.quantization!r}: expected none, int8 or binary.")
        if not 0.5 <= self.quantile <= 1:
            raise InputError(f"quantile: expected 0.5 to 1, got {self.quantile}.")
        if self.oversampling < 1:
            raise InputError(f"oversampling: expected 1 or more, got {self.oversampling}.")
        for name in ("connectivity", "expansion_add", "expansion_search"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected 1 or more, got {getattr(self, name)}.")


def parse_target(text: str) -> Place:
    """ ":memory:", a folder with or without "#collection", or "http://host:6333/collection"; "qdrant:" before it is passed over.

    Raises:
        InputError: an address without a collection, or nothing.
    """
    target = text.removeprefix("qdrant:")
    if target.startswith(("http://", "https://")):
        parts = urlsplit(target)
        way, _, collection = parts.path.rstrip("/").rpartition("/")
        if not collection or not parts.hostname or parts.query or parts.fragment:
            raise InputError(
                f"{text}: expected an address and a collection, e.g. qdrant:http://host:6333/pets."
            )
        if parts.username or parts.password:
            raise InputError(
                f"qdrant:{parts.scheme}://...@{parts.hostname}: put the key into $QDRANT_API_KEY, where no list of processes shows it."
            )
        return Place(collection, url=f"{parts.scheme}://{parts.netloc}{way}")
    folder, _, collection = target.partition("#")
    if not folder:
        raise InputError(f"{text!r}: expected a folder, an address or {MEMORY}, e.g. qdrant:pets.qdrant.")
    return Place(collection or COLLECTION, folder=folder)


def connect(place: Place, *, allow_pickle: bool = False, must_exist: bool = False) -> Any:
    """A qdrant_client.QdrantClient.

    Raises:
        InputError: a folder that another process has open, that is not there, or holds pickles that nobody vouched for.
        MissingExtraError: no qdrant-client.
    """
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise MissingExtraError(
            "Qdrant: qdrant-client is not installed. pip install 'edgeclip[qdrant]'"
        ) from error
    with asking(place):
        if place.url:
            parts = urlsplit(place.url)
            port = parts.port or (
                443 if parts.scheme == "https" else 80
            )  # the client would take 6333 for none
            key = os.environ.get("QDRANT_API_KEY") or None
            if key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
                log.warning("%s: $QDRANT_API_KEY goes there unencrypted; use https", place)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # says the same in two lines
                return QdrantClient(
                    url=place.url, port=port, api_key=key, timeout=60, check_compatibility=False
                )
        if place.folder == MEMORY:
            return QdrantClient(MEMORY)
        folder = Path(str(place.folder))
        if must_exist and not (folder / "meta.json").is_file():
            raise InputError(
                f"{place}: no Qdrant folder. `edgeclip index export INDEX -o {place}` makes one."
            )
        if not (folder / "meta.json").is_file() and _holds_others(folder):
            raise InputError(f"{place}: already exists and is no Qdrant folder. Choose another place.")
        if not allow_pickle and any(folder.glob("collection/*/storage.*")):
            raise InputError(
                f"{place}: Qdrant keeps the points of a folder as pickles, which run whatever code their writer put there. "
                "Pass --allow-pickle (allow_pickle=True) for a folder of your own."
            )
        return QdrantClient(path=str(folder))


def _holds_others(folder: Path) -> bool:
    """Whether a folder, or a file in its place, holds what Qdrant does not begin with."""
    return folder.is_file() or (folder.is_dir() and any(one.name not in _BEGUN for one in folder.iterdir()))


def models_of() -> Any:
    """qdrant_client.models."""
    from qdrant_client import models

    return models


def collection_settings(place: Place, dim: int, options: QdrantOptions) -> dict[str, Any]:
    """What `create_collection` is told; where there is no server, without what it would warn of and pass over."""
    models = models_of()
    if not place.url:
        return {"vectors_config": models.VectorParams(size=dim, distance=models.Distance.COSINE)}
    quantised = {
        "none": None,
        "int8": models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(
                type=models.ScalarType.INT8, quantile=options.quantile, always_ram=options.always_ram
            )
        ),
        "binary": models.BinaryQuantization(
            binary=models.BinaryQuantizationConfig(always_ram=options.always_ram)
        ),
    }
    return {
        "vectors_config": models.VectorParams(
            size=dim, distance=models.Distance.COSINE, on_disk=options.on_disk
        ),
        "hnsw_config": models.HnswConfigDiff(m=options.connectivity, ef_construct=options.expansion_add),
        "quantization_config": quantised[options.quantization],
    }


def search_settings(place: Place, options: QdrantOptions, exact: bool) -> Any:
    """What a query is told; nothing where there is no server."""
    models = models_of()
    if not place.url:
        return None
    quantised = None
    if options.quantization != "none":
        quantised = models.QuantizationSearchParams(
            ignore=exact, rescore=options.rescore, oversampling=options.oversampling
        )
    return models.SearchParams(hnsw_ef=options.expansion_search, exact=exact, quantization=quantised)


@contextlib.contextmanager
def asking(place: Place) -> Iterator[None]:
    """Qdrant's errors as ours: one line with the place."""
    try:
        yield
    except EdgeClipError:
        raise
    except Exception as error:
        if not _is_refusal(error):
            raise
        shown = " ".join(str(getattr(error, "source", error)).split())[:300]
        hint = ". Expected a server there: check the address, or start one." if _is_unanswered(error) else ""
        raise InputError(f"{place}: Qdrant: {shown}{hint}") from error


def _is_unanswered(error: Exception) -> bool:
    from qdrant_client.http.exceptions import ResponseHandlingException

    return isinstance(error, ResponseHandlingException)


def _is_refusal(error: Exception) -> bool:
    from qdrant_client.http.exceptions import ApiException

    return isinstance(error, (ApiException, OSError)) or (
        isinstance(error, (ValueError, RuntimeError)) and _raised_in(error).startswith("qdrant_client.")
    )


def _raised_in(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", "")) if trace else ""
