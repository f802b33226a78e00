"""A bundle, opened: pictures and texts to vectors, pictures to labels.

    with load("nano") as model:
        model.classify("cat.png", ["a cat", "a dog"]).label

Threads: one model may be used by any number of threads at once. Fork: a child may use a model that its parent opened; it opens
its own engines when it first needs them. Nothing is written to disk, and no result about a picture is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Bundle, open_bundle
from edgeclip.errors import EngineError, InputError
from edgeclip.runtime import stages
from edgeclip.runtime.detect.detector import Detector
from edgeclip.runtime.detect.methods import Detecting
from edgeclip.runtime.engines import EngineOptions, engine_order, local_variants
from edgeclip.runtime.expert_methods import Mixing
from edgeclip.runtime.heads import Heads
from edgeclip.runtime.images.decode import Color, DecodeLimits, Picture
from edgeclip.runtime.images.preprocess import Decode
from edgeclip.runtime.labels import LabelPack
from edgeclip.runtime.pictures import Pictures, is_one
from edgeclip.runtime.prompts import Prompts, check_labels, check_templates
from edgeclip.runtime.region_methods import Asking
from edgeclip.runtime.regions import ASKING, Regions
from edgeclip.runtime.results import Classification, ModelInfo, check_choice, rank
from edgeclip.runtime.text import Encoded
from edgeclip.runtime.threads import usable_cores
from edgeclip.runtime.towers import Tower

if TYPE_CHECKING:
    from edgeclip.runtime.codecs import Codecs

# kind and head, as in Axes
TOWERS = (
    ("image", "embeddings"),
    ("image", "labels"),
    ("image", "prompts"),
    ("image", "routing"),
    ("text", "embeddings"),
    ("text", "routing"),
    ("detector", "embeddings"),
    ("detector", "labels"),
    ("detector", "prompts"),
    ("tokens", "embeddings"),
    ("regions", "embeddings"),
    ("grounding", "embeddings"),
)

Vectors = NDArray[np.float32]
Labels = Sequence[str] | LabelPack


def load(
    bundle: str | os.PathLike[str] | Bundle,
    engine: str | Sequence[str] | None = None,
    threads: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    precision: str | None = None,
    variants: Sequence[str] = (),
    decode: Decode = "fast",
    limits: DecodeLimits | None = None,
    unload_after: float | None = None,
    options: EngineOptions | None = None,
) -> Model:
    """Open a bundle. No tower is loaded before it is used; `warmup` does it ahead.

    Args:
        bundle: folder, .zip, "hf:ORG/NAME", an embedded name ("nano"), or an opened Bundle.
        engine: an entry of `edgeclip.runtime.engines.ENGINES`, and no other; or several, tried in this order; None: the best
            one that opens here.
        threads: for one operator and for decoding; None: the physical cores this process may use.
        cache_dir: where a .zip or Hub bundle is unpacked; None: $EDGECLIP_CACHE or the user's cache.
        precision: only variants of this precision, e.g. "int8"; None: the bundle's order decides.
        variants: ids of the variants to open, e.g. ["image-int8-decomposed"]; a tower without one chooses as above.
        decode: "fast" lets large JPEGs be decoded at a reduced scale; "exact" reads every pixel.
        limits: what one picture may cost.
        unload_after: close a tower after so many idle seconds; None: keep it.
        options: everything else about engines; `threads` above wins over its own.
    Raises:
        BundleError: missing or damaged. EngineError: no such engine, precision or variant.
    """
    opened = (
        bundle
        if isinstance(bundle, Bundle)
        else open_bundle(os.fspath(bundle), Path(cache_dir) if cache_dir else None)
    )
    settings = options or EngineOptions()
    count = threads or settings.threads or usable_cores()
    settings = replace(settings, threads=count)
    return Model(
        opened,
        engine,
        settings,
        precision=precision,
        variants=variants,
        decode=decode,
        limits=limits,
        unload_after=unload_after,
    )


class Model(Detecting, Asking, Mixing):
    """See `load`. Every method takes one item, giving one result, or several, giving as many in the same order."""

    def __init__(
        self,
        bundle: Bundle,
        engine: str | Sequence[str] | None,
        options: EngineOptions,
        *,
        precision: str | None = None,
        variants: Sequence[str] = (),
        decode: Decode = "fast",
        limits: DecodeLimits | None = None,
        unload_after: float | None = None,
    ) -> None:
        order = engine_order(engine)  # refuses an unknown name
        if variants:
            known = [variant.id for variant in bundle.manifest.variants]
            known += [v.id for name in order for v in local_variants(name, bundle, options)]
            if unknown := [name for name in variants if name not in known]:
                raise EngineError(f"{bundle.root}: no variant {unknown[0]!r}; it has {', '.join(known)}.")
        self.bundle, self.manifest = bundle, bundle.manifest
        self._threads = options.threads or usable_cores()
        self._decode = decode
        by_name = {
            (kind, head): Tower(
                bundle,
                kind,
                head=head,
                engine=engine,
                options=options,
                precision=None if kind in ASKING or head == "routing" else precision,
                wanted=variants,
                unload_after=unload_after,
            )
            for kind, head in TOWERS
        }
        self._towers = tuple(by_name.values())
        image, text, detector = (by_name[kind, "embeddings"] for kind in ("image", "text", "detector"))
        for tower in (image, text, detector):
            if precision is not None and bundle.manifest.variants_of(tower.kind):
                _ = tower.variants  # refuses a precision that the bundle does not have
        self._text, self._prompts = text, Prompts(bundle, text)
        self._heads = Heads(bundle, _heads_of(by_name, "image"), self._prompts)
        self._pictures = Pictures(bundle, image, decode=decode, limits=limits, threads=self._threads)
        self._seen = Pictures(bundle, detector, decode=decode, limits=limits, threads=self._threads)
        self._detector = Detector(bundle, _heads_of(by_name, "detector"), self._heads, self._seen)
        tokens = Pictures(
            bundle, by_name["tokens", "embeddings"], decode=decode, limits=limits, threads=self._threads
        )
        asking = {kind: by_name[kind, "embeddings"] for kind in ("tokens", *ASKING)}
        self._regions = Regions(bundle, asking, tokens, self._detector)
        self._routing = {kind: by_name[kind, "routing"] for kind in ("image", "text")}
        self._closed = False

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the towers and the decoding threads. Closing twice is fine; any later call is refused."""
        self._closed = True
        for tower in self._towers:
            tower.close()
        self._pictures.close()
        self._seen.close()
        self._regions.close()

    @cached_property
    def codecs(self) -> Codecs:
        """How to store this model's vectors in fewer bytes. Raises EngineError for a bundle that none were fitted for."""
        from edgeclip.runtime.codecs import Codecs  # late: a sixth of what `import` takes

        facts = self.manifest
        if not facts.codecs:
            raise EngineError(
                f"{self.bundle.root}: this bundle has no codecs. Fit them with `edgeclip codecs` and your own pictures."
            )
        found = Codecs.open(self.bundle.path(facts.codecs))
        found.require(facts.model_id, facts.embedding_dim)
        return found

    def warmup(self, *, text: bool = True) -> None:
        """Open the towers and run each once, so that the first real call is as fast as the next. `text=False`: not that one.

        Of the image towers and the detector's the one that embeds; where there is none, those with heads.
        """
        if self.manifest.preprocessing is not None:
            height, width = self.manifest.preprocessing.size
            black = np.zeros((height, width, 3), np.uint8)
            self._detector.warm_up(black)
            self._regions.warm_up(black)
            if self._heads.has("embeddings"):
                self.embed_images(black)
            else:
                for plan in self._heads.plans():
                    list(self._pictures.each([black], "rgb", 1, stop=True, query=plan.query))
        if text and self.manifest.text is not None and self.manifest.variants_of("text"):
            self._prompts.embed(["a"])
            self._prompts.clear()

    @property
    def towers(self) -> tuple[Tower, ...]:
        """One for each kind and output, as in TOWERS; open or not, in the bundle or not."""
        return self._towers

    def info(self) -> ModelInfo:
        """Engine, provider, variant and precision of each tower that is open; `fell_back` says why no better engine was."""
        towers = {}
        for tower in self._towers:
            if (engine := tower.engine) is not None:
                towers[tower.name] = {
                    "engine": engine.name,
                    "provider": engine.provider,
                    "variant": engine.variant.id,
                    "precision": engine.variant.axes.precision,
                    **({"fell_back": tower.fell_back} if tower.fell_back else {}),
                }
        return ModelInfo(self.manifest.name, towers, self._threads, self._decode)

    def embed_images(
        self, images: Picture | Iterable[Picture], *, color: Color = "rgb", batch_size: int = 8
    ) -> Vectors:
        """Pictures to unit vectors.

        Args:
            images: one picture (path, encoded bytes, PIL image, uint8 array) or several.
            color: of arrays: "rgb", "bgr", "nv12" or "yuyv".
            batch_size: pictures in one call of the engine.
        Returns:
            (D,) for one, (N, D) for several; (0, D) for none. float32.
        Raises:
            InputError: the first picture that cannot be used, by path or number. `embed_each` goes on instead.
        """
        if one := is_one(images):
            images = [images]  # type: ignore[list-item]
        found = self._each(images, color, batch_size, stop=True)  # type: ignore[arg-type]
        rows = [row for row in found if not isinstance(row, InputError)]
        vectors = np.stack(rows) if rows else np.empty((0, self.manifest.embedding_dim), np.float32)
        return vectors[0] if one else vectors

    def embed_each(
        self, images: Iterable[Picture], *, color: Color = "rgb", batch_size: int = 8
    ) -> Iterator[Vectors | InputError]:
        """Like `embed_images`, one at a time and never raising for a picture: yields (D,), or the error in its place."""
        return self._each(images, color, batch_size, stop=False)

    def embed_pixels(self, pixels: NDArray[Any], *, batch_size: int = 8) -> Vectors:
        """Pictures preprocessed by the caller as the bundle says, to (N, D), or to (D,) for one without the axis N.

        Args:
            pixels: (N, 3, H, W) float32, or (N, H, W, 3) uint8 RGB where the image variant takes bytes.
        """
        self._require_open()
        return (
            self._pictures.pixels(pixels[None], 1)[0]
            if pixels.ndim == 3
            else self._pictures.pixels(pixels, batch_size)
        )

    def embed_texts(self, texts: str | Iterable[str], *, strict: bool = False) -> Vectors:
        """Texts to unit vectors: (D,) for one, (N, D) for several; (0, D) for none. float32.

        A text that is too long is cut and a warning logged; with `strict` it raises InputError. Vectors of texts are kept.
        """
        self._require_open()
        if isinstance(texts, str):
            return np.asarray(self._prompts.embed([texts], strict=strict)[0], np.float32)
        return self._prompts.embed(list(texts), strict=strict)

    def keep_texts(self, most: int) -> None:
        """Keep the vectors of so many texts, least recently used go first (8192 unless this is called); 0: compute each text anew."""
        if most < 0:
            raise InputError(f"keep_texts: expected 0 or more, got {most}.")
        self._prompts.keep(most)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels baked into the bundle: what `classify`, or `detect` in a detector, goes by without others. () where none are."""
        baked = self._heads.baked or self._heads.baked_in("detector")
        return baked.labels if baked else ()

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is also an iterable of str: the first line wins
        self, images: Picture, labels: Labels | None = ..., templates: Sequence[str] | None = ..., top_k: int | None = ...,
        threshold: float | None = ..., *, color: Color = ..., batch_size: int = ...,
    ) -> Classification: ...  # fmt: skip

    @overload
    def classify(
        self, images: Iterable[Picture], labels: Labels | None = ..., templates: Sequence[str] | None = ..., top_k: int | None = ...,
        threshold: float | None = ..., *, color: Color = ..., batch_size: int = ...,
    ) -> list[Classification]: ...  # fmt: skip

    def classify(
        self,
        images: Any,
        labels: Labels | None = None,
        templates: Sequence[str] | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        *,
        color: Color = "rgb",
        batch_size: int = 8,
    ) -> Classification | list[Classification]:
        """Say which label fits each picture best (zero-shot).

        Args:
            images: as for `embed_images`.
            labels: texts, or a LabelPack made by this model; None: the labels that were baked into the bundle.
            templates: prompts with a {} for the label, averaged; None: the bundle's own.
            top_k: labels to keep in each result; None: all.
            threshold: 0-1; with a best score below it the result's label is None. None: the pack's own, if any.
        Raises:
            InputError: a picture, label, template or pack that cannot be used.
        """
        if one := is_one(images):
            images = [images]
        found = list(
            self._classify(images, labels, templates, top_k, threshold, color, batch_size, stop=True)
        )
        results = [result for result in found if isinstance(result, Classification)]
        return results[0] if one else results

    def classify_each(
        self,
        images: Iterable[Picture],
        labels: Labels | None = None,
        templates: Sequence[str] | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        *,
        color: Color = "rgb",
        batch_size: int = 8,
    ) -> Iterator[Classification | InputError]:
        """Like `classify`, one at a time and never raising for a picture: yields its error in its place."""
        return self._classify(images, labels, templates, top_k, threshold, color, batch_size, stop=False)

    def encode_texts(self, texts: Sequence[str], *, strict: bool = False) -> Encoded:
        """The ids that the text tower gets, and which texts were cut."""
        self._require_open()
        return self._prompts.encoder.encode(texts, strict=strict)

    def make_labels(
        self, labels: Sequence[str], templates: Sequence[str] | None = None, *, strict: bool = False
    ) -> LabelPack:
        """Embed labels once, for devices that then need neither text tower nor tokenizer. `strict`: refuse one that is too long."""
        self._require_open()
        names, prompts = check_labels(labels), check_templates(templates, self.manifest.templates)
        vectors = self._prompts.ensemble(names, prompts, strict=strict).copy()  # the caller's own
        used = self._text.engine
        return LabelPack(names, prompts, vectors, self.manifest.model_id, used.variant.id if used else "")

    def _classify(
        self,
        images: Iterable[Picture],
        labels: Labels | None,
        templates: Sequence[str] | None,
        top_k: int | None,
        threshold: float | None,
        color: Color,
        batch_size: int,
        stop: bool,
    ) -> Iterator[Classification | InputError]:
        self._require_open()
        check_choice(top_k, threshold)
        begun = stages.begin()
        plan = self._heads.plan(labels, templates)
        stages.end("head", begun)  # but for the texts that it had to embed
        thresholds = plan.thresholds if threshold is None else (threshold,) * len(plan.names)
        for row in self._pictures.each(images, color, batch_size, stop=stop, query=plan.query):
            if isinstance(row, InputError):
                yield row
                continue
            begun = stages.begin()
            result = rank(plan.scores(row), plan.names, top_k, thresholds)
            stages.end("head", begun)
            yield result

    def _each(
        self, images: Iterable[Picture], color: Color, batch_size: int, stop: bool
    ) -> Iterator[Vectors | InputError]:
        self._require_open()
        return self._pictures.each(images, color, batch_size, stop=stop)

    def _require_open(self) -> None:
        if self._closed:
            raise EngineError(f"{self.manifest.name}: this model was closed. Load the bundle again.")


def _heads_of(towers: Mapping[tuple[str, str], Tower], kind: str) -> dict[str, Tower]:
    return {head: tower for (of, head), tower in towers.items() if of == kind}
