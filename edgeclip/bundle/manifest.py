"""What `bundle.json` says, as frozen dataclasses. Every field is read by somebody, none is guessed.

The published JSON Schema is docs/bundle.schema.json, made from these by `schema.py`; a test holds the two together.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edgeclip.bundle.typed import from_json_value, short
from edgeclip.errors import BundleError

FORMAT = "edgeclip.bundle"
FORMAT_VERSION = (1, 4)  # (major, minor): another major is refused, a newer minor is read

_DIGEST = ',\n "digest": '  # what stands between the digested bytes and the digest


@dataclass(frozen=True)
class Preprocessing:
    """From an RGB picture of any size to `pixels`. Read from the source's config, never guessed from its name."""

    size: tuple[int, int]  # (H, W) of the tower's input, pixels
    mode: Literal["shortest_crop", "squash", "pad"]
    # shortest_crop: scale the shorter side to `resize`, crop the centre; squash: scale both sides to `size`;
    # pad: scale the longer side to `size`, fill the rest with pad_color (centred)
    # antialiased as Pillow does it; "gaussian": bilinear behind a Gaussian blur of (factor - 1) / 2, as scikit-image does it
    resample: Literal["bicubic", "bilinear", "lanczos", "nearest", "gaussian"]
    mean: tuple[float, float, float]  # of values in 0-1, RGB
    std: tuple[float, float, float]
    resize: int = 0  # shortest_crop: target of the shorter side; 0 = the smaller of `size`
    # the scaled longer side: Hugging Face and torchvision cut it, open_clip rounds
    long_side: Literal["floor", "round"] = "floor"
    # (long - crop) / 2: Hugging Face floors, torchvision rounds
    crop_offset: Literal["floor", "round_half_even"] = "floor"
    pad_color: tuple[int, int, int] = (0, 0, 0)
    # transparent pixels are composited on it; None: alpha is dropped
    background: tuple[int, int, int] | None = None
    # pad: where the picture stands in the square
    pad_anchor: Literal["center", "top_left"] = "center"
    # pad: the picture is padded to a square at its own size and then scaled, not the other way round
    pad_first: bool = False


@dataclass(frozen=True)
class TextSettings:
    """From a text to `input_ids`."""

    context_length: int  # largest L, specials included; longer texts are cut, and said to be
    pad_id: int
    eos_id: int | None  # forced to be the last id of a text that was cut; None: the family has none
    dynamic_length: bool  # True: pad to the longest text of the batch; False: always to context_length
    # applied before the tokenizer, see runtime/text
    clean: Literal["none", "openai", "canonicalize", "lower", "whitespace", "siglip"] = "none"
    tokenizer: str = "tokenizer.json"  # file inside the bundle
    vocab_size: int = 0


@dataclass(frozen=True)
class Port:
    """One input or output of a graph."""

    name: str
    dtype: Literal["float32", "float16", "int32", "int64", "uint8", "bool"]
    shape: tuple[int | str, ...]  # a str is a symbolic size, e.g. ("N", 3, 224, 224)


@dataclass(frozen=True)
class Axes:
    """How a variant differs from its siblings."""

    precision: Literal["fp32", "fp16", "bf16", "int8", "int4", "fp8"] = "fp32"
    attention: Literal["decomposed", "op", "none"] = "none"  # "op": the ONNX Attention operator (opset 23)
    opset: int = 18
    # how activations reach a quantised layer: as they are, with scales fixed at calibration, or with scales of each call
    activations: Literal["float", "static", "dynamic"] = "float"
    token_merging: int = 0  # tokens merged away before the feed-forward of each block
    input: Literal["float32", "uint8"] = "float32"  # "uint8": (N, H, W, 3) RGB 0-255, normalised in the graph
    # what comes out: unit vectors; logits of the labels baked in; logits of prompts given at run time; the shares that experts have
    head: Literal["embeddings", "labels", "prompts", "routing"] = "embeddings"
    # how mixtures of experts are computed: every expert for every token; for those that chose it; for a fixed number of them
    moe: Literal["none", "dense", "gather", "capacity"] = "none"

    def name(self, tower: str) -> str:
        """The id of the variant of this tower, e.g. "image-int8-decomposed-merge8"."""
        parts = [
            tower,
            self.precision,
            self.attention if self.attention != "none" else "",
            "dynamic" if self.activations == "dynamic" else "",
            f"merge{self.token_merging}" if self.token_merging else "",
            self.moe if self.moe != "none" else "",
            "uint8" if self.input == "uint8" else "",
            self.head if self.head != "embeddings" else "",
        ]
        return "-".join(part for part in parts if part)


@dataclass(frozen=True)
class DetectionFidelity:
    """Agreement of a detector's boxes and scores with those of its source, on pictures and labels."""

    regions: int  # compared: pictures x regions of each
    labels: int  # with which scores were made
    box_max: float  # largest difference of a corner, as a share of the picture's side
    box_mean: float
    score_max: float  # largest difference of a score, 0-1
    score_mean: float
    # F1 of what both find above the model's threshold, after NMS: same label, boxes of an IoU of 0.9 or more; None: neither finds any
    agreement: float | None = None


@dataclass(frozen=True)
class Fidelity:
    """Agreement of a variant with its source (or with `against`), measured in float64 on pictures and texts."""

    samples: int
    max_abs: float  # largest absolute difference of unit vectors
    cosine_mean: float
    cosine_p1: float  # first percentile
    cosine_min: float
    relative_distance: float  # mean of ||a - b|| / median distance between different samples
    rank_agreement: float  # share of samples whose nearest other sample is the source's
    top1_agreement: float | None = None  # of zero-shot labels; None where no text tower was at hand
    against: str = "source"  # or the id of the variant that this one was made from
    detection: DetectionFidelity | None = None  # of a detector, whose rows above are its regions' embeddings
    near_ties: int = (
        0  # samples left out of the figures: a token of theirs was within 1e-5 of taking another expert
    )


@dataclass(frozen=True)
class Experts:
    """The mixtures of experts in a tower's feed-forwards."""

    blocks: tuple[int, ...]  # those that have one, from 0
    counts: tuple[int, ...]  # experts of each of them
    top_k: int  # that a token takes; all where there are fewer
    # moe "capacity": tokens of one sample that each expert takes, by block of `blocks`
    capacities: tuple[tuple[int, ...], ...] = ()
    dropped: float | None = (
        None  # share of the tokens' choices that found no place, on the samples of the fidelity
    )


@dataclass(frozen=True)
class Scores:
    """How logits follow from cosines: scale * cosine + bias."""

    logit_scale: float
    logit_bias: float = 0.0


@dataclass(frozen=True)
class Variant:
    """One graph of one tower."""

    id: str  # e.g. "image-fp32-decomposed"; the graph is graphs/<id>.onnx
    # image, text: an embedding each; detector: boxes and what they hold; tokens: a picture, to be asked by "regions" (boxes to
    # embeddings) and "grounding" (prompts to boxes)
    tower: Literal["image", "text", "detector", "tokens", "regions", "grounding"]
    axes: Axes
    files: tuple[str, ...]  # the graph first, then its external data
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    requires: dict[str, str] = field(default_factory=dict)  # e.g. {"onnxruntime": "1.23", "ir": "10"}
    fidelity: Fidelity | None = None
    proven: tuple[str, ...] = ()  # engines on which it was measured to be worth it; none: never measured
    scores: Scores | None = None  # fitted again for this variant; None: the manifest's
    labels: str = ""  # head "labels": the label pack that was baked in, a file of the bundle
    experts: Experts | None = None  # None: every feed-forward is dense

    @property
    def computes_in(self) -> str:
        """The precision of its products: an export in "fp16" only stores its weights so, and its graph widens them to fp32."""
        exported = self.fidelity is None or self.fidelity.against == "source"
        return "fp32" if self.axes.precision == "fp16" and exported else self.axes.precision


@dataclass(frozen=True)
class Detection:
    """How what a detector gives becomes detections, where the caller says nothing else."""

    threshold: float = 0.1  # smallest score
    nms_iou: float = 0.5  # of two boxes that overlap by more, the better one stays
    class_agnostic: bool = False  # True: also where they bear different labels
    objectness: bool = False  # True: a score is sigmoid(logit) x objectness; False: objectness only ranks regions without a label
    preprocessing: Preprocessing | None = None  # of the detector's pixels; None: the manifest's own


@dataclass(frozen=True)
class Licence:
    """The licence passport."""

    weights: str  # SPDX id or "unknown"
    code: str = "unknown"
    data: str = "unknown"
    credit: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The whole of `bundle.json`."""

    name: str
    model_id: str  # identity(): what label packs and indexes are bound to
    family: str
    embedding_dim: int
    activation: Literal["softmax", "sigmoid"]
    logit_scale: float  # applied to the cosine; already exp()
    logit_bias: float
    variants: tuple[Variant, ...]
    preprocessing: Preprocessing | None  # None: no image tower
    text: TextSettings | None  # None: no text tower
    licence: Licence
    files: dict[str, FileEntry]
    golden: str = ""  # safetensors file of inputs and outputs that `verify` replays; "" = none
    codecs: str = ""  # safetensors file: how to shorten and quantise embeddings; "" = none fitted
    reports: tuple[str, ...] = ()  # latency reports, JSON files as docs/bench.schema.json has them
    templates: tuple[str, ...] = ("{}",)  # default prompt templates
    detection: Detection | None = None  # None: no detector
    # of the pictures whose regions are asked, where the classifier's crops them; None: as for it
    region_preprocessing: Preprocessing | None = None
    source: str = ""  # the spec that was exported
    source_digest: str = ""  # SHA-256 over the source's weights
    created_by: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The file's text: format line, fields, and last the digest over every byte before it."""
        text = json.dumps(
            {"format": FORMAT, "version": list(FORMAT_VERSION), **asdict(self)}, indent=1, ensure_ascii=False
        )
        body = text.removesuffix("\n}")
        return f'{body}{_DIGEST}"{_sha256(body)}"\n}}\n'

    @staticmethod
    def stated_digest(text: str) -> str:
        """The digest that a manifest's text ends with; checked by `from_json`. Names the bundle's cache folder."""
        return str(json.loads(text)["digest"])

    def variants_of(self, tower: str, head: str = "embeddings") -> list[Variant]:
        """The variants of one tower with one kind of output, in the manifest's order (first = preferred)."""
        return [v for v in self.variants if v.tower == tower and v.axes.head == head]

    def preprocessing_of(self, tower: str) -> Preprocessing | None:
        """How pictures are prepared for a tower; None: the bundle takes no pictures."""
        own = self.region_preprocessing if tower == "tokens" else None
        if tower == "detector" and self.detection is not None:
            own = self.detection.preprocessing
        return own or self.preprocessing

    def scores_of(self, variant: Variant | None) -> Scores:
        """How logits follow from the cosines of one image variant; None: of the model as it was trained."""
        own = None if variant is None else variant.scores
        return own or Scores(self.logit_scale, self.logit_bias)

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Parse and check. `where` names the file in messages.

        Raises:
            BundleError: no bundle, a newer major format, a wrong field, or content that does not match its digest.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise BundleError(
                f"{where}: not JSON ({error}). The bundle is damaged: export or pull it again."
            ) from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BundleError(
                f'{where}: expected "format": "{FORMAT}", got {short(data)}. This is not a bundle.'
            )
        version = data.get("version")
        if not (
            isinstance(version, list) and len(version) == 2 and all(type(part) is int for part in version)
        ):
            raise BundleError(f"{where}: expected a version [major, minor], got {short(version)}.")
        if version[0] != FORMAT_VERSION[0]:
            raise BundleError(
                f"{where}: bundle format {version[0]}.{version[1]}, this edgeclip reads {FORMAT_VERSION[0]}.x. "
                "Install a newer edgeclip, or export the model again."
            )
        if data.pop("digest", None) != _sha256(text.rpartition(_DIGEST)[0]):
            raise BundleError(
                f"{where}: the content does not match its own digest; it was edited or damaged."
            )
        data.pop("format"), data.pop("version")
        return from_json_value(cls, data, where, newer=version[1] > FORMAT_VERSION[1])


def identity(
    source_digest: str,
    family: str,
    preprocessing: Preprocessing | None,
    text: TextSettings | None,
    tokenizer: str,
    pooling: str,
) -> str:
    """`model_id`: SHA-256 over what decides an embedding's meaning. Adding a variant never changes it.

    Args:
        source_digest: SHA-256 of the source's weights.
        tokenizer: SHA-256 of the tokenizer file, "" without a text tower.
        pooling: the towers' pooling rules, e.g. "cls/eos".
    """
    parts = {
        "source": source_digest,
        "family": family,
        "preprocessing": _said(preprocessing) if preprocessing else None,
        "text": asdict(text) if text else None,
        "tokenizer": tokenizer,
        "pooling": pooling,
    }
    return _sha256(json.dumps(parts, sort_keys=True))


def _said(preprocessing: Preprocessing) -> dict[str, Any]:
    """Its fields, without those that came later and say nothing here: a model exported again keeps its identity."""
    later = {"pad_anchor": "center", "pad_first": False}
    return {name: value for name, value in asdict(preprocessing).items() if value != later.get(name, ...)}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
