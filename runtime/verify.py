"""Prove that a bundle is whole and gives on this machine what it gave when it was made.

The golden file (safetensors) holds `pictures/0`, `pictures/1`, ... (H, W, 3) uint8; what they become: `pixels` (N, 3, H, W) and
`image_embeddings` (N, D), or `image_embeddings/mergeR` where each block merges R tokens away; and `input_ids` (M, L) with
`text_embeddings` (M, D), whose texts are a JSON list under the metadata key `texts`. Whatever is absent is not replayed; every graph must still run, and give finite values that differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import Bundle, Variant, check_hashes
from edgeclip.errors import BundleError, CheckFailed, EdgeClipError
from edgeclip.runtime.cpu import BYTE_SUMS, saturates
from edgeclip.runtime.engines import EngineOptions, open_variant, run
from edgeclip.runtime.images import Preprocessor, bytes_of
from edgeclip.runtime.text import TextEncoder
from edgeclip.runtime.verify_heads import replay_head

Array = NDArray[Any]

# Of unit vectors. Other CPUs sum in another order: 2e-7 was seen between machines, a tanh for an exact GELU moves 2e-5.
MAX_ABS_FP32 = 5e-6
# Of the other precisions: mean distance to the golden rows, over the median distance between different golden rows.
RELATIVE = {"fp16": 0.02, "bf16": 0.05, "int8": 0.15, "fp8": 0.15, "int4": 0.5}
# A user's budget may be wider, and merged tokens cost what they cost: then it is so many times what the manifest states, since
# the golden inputs are few and of another kind than those it was measured on.
SLACK = 2.0
MERGED = 0.05  # at least, where tokens are merged: another CPU's rounding may choose another pair
SAME = 1e-4  # rows of different inputs that are closer than this are called constant


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """Every check, in the order they ran."""

    path: str
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "path": self.path,
            "passed": all(c.passed for c in self.checks),
            "checks": [asdict(c) for c in self.checks],
        }

    def require(self) -> None:
        """Raise CheckFailed that names the checks which fell short."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise CheckFailed(
                f"{self.path}: {failed[0].name}: {failed[0].detail}{more}. Export or pull the bundle again."
            )


def verify(bundle: Bundle, *, threads: int | None = None, engine: str = "onnxruntime-cpu") -> Report:
    """Check every hash, open every graph, replay the golden inputs. Never raises for a check that falls short."""
    checks: list[Check] = []

    def attempt(name: str, work: Callable[[], str]) -> bool:
        try:
            checks.append(Check(name, True, work()))
        except EdgeClipError as error:
            checks.append(Check(name, False, str(error)))
        return checks[-1].passed

    if attempt("hashes", lambda: _hashes(bundle)):  # nothing that may have been tampered with is opened
        golden: dict[str, Any] = {}
        if attempt("golden file", lambda: golden.update(_golden(bundle)) or f"{len(golden)} entries"):
            if bundle.manifest.preprocessing is not None and "pixels" in golden:
                attempt("preprocessing", lambda: _preprocessing(bundle, golden))
            if bundle.manifest.text is not None:
                attempt("tokenizer", lambda: _tokenizer(bundle, golden))
        for variant in bundle.manifest.variants:
            replay = partial(_replay, bundle, variant, golden, EngineOptions(threads=threads), engine)
            attempt(variant.id, replay)
    return Report(str(bundle.root), tuple(checks))


def _hashes(bundle: Bundle) -> str:
    check_hashes(bundle)
    size = sum(entry.size for entry in bundle.manifest.files.values())
    return f"{len(bundle.manifest.files)} files, {size / 1e6:.1f} MB"


def _golden(bundle: Bundle) -> dict[str, Any]:
    if not bundle.manifest.golden:
        return {}
    from safetensors import SafetensorError, safe_open

    path = bundle.path(bundle.manifest.golden)
    try:
        with safe_open(path, framework="np") as file:
            texts = json.loads((file.metadata() or {}).get("texts", "[]"))
            return {"texts": texts, **{name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118  (no dict)
    except (OSError, SafetensorError, ValueError) as error:
        raise BundleError(f"{path}: not a golden file that can be read ({error})") from error


def _preprocessing(bundle: Bundle, golden: dict[str, Any]) -> str:
    spec = bundle.manifest.preprocessing
    assert spec is not None
    preprocessor, worst = Preprocessor(spec, decode="exact"), 0.0
    for i, want in enumerate(golden["pixels"]):
        found = np.empty((3, *spec.size), np.float32)
        preprocessor.into(golden[f"pictures/{i}"], found)
        worst = max(worst, float((np.abs(found - want) * np.array(spec.std)[:, None, None]).max() * 255))
    if not worst <= 1.01:
        raise CheckFailed(f"pixels are {worst:.2f} levels of 255 from the golden ones, 1 is allowed")
    return f"{len(golden['pixels'])} pictures, at most {worst:.2f} levels of 255 away"


def _tokenizer(bundle: Bundle, golden: dict[str, Any]) -> str:
    settings = bundle.manifest.text
    assert settings is not None
    encoder = TextEncoder.open(bundle.path(settings.tokenizer), settings)
    texts = golden.get("texts", [])
    if not texts:
        return "opens"
    if not np.array_equal(encoder.encode(texts).input_ids, golden["input_ids"]):
        raise CheckFailed("the ids are not the golden ones")
    return f"{len(texts)} texts, ids equal"


def _replay(
    bundle: Bundle, variant: Variant, golden: dict[str, Any], options: EngineOptions, engine: str
) -> str:
    if variant.requires.get("engine") == "gpu" and engine == "onnxruntime-cpu":
        return "is for a GPU, not run here"
    if variant.requires.get(BYTE_SUMS) == "wide" and saturates():
        return "is for a processor that sums products of bytes in 32 bits, not run here"
    opened = open_variant(engine, bundle, variant, options)
    name = variant.inputs[0].name
    want = golden.get("image_embeddings" if variant.tower == "image" else "text_embeddings")
    want = golden.get(f"image_embeddings/merge{variant.axes.token_merging}", want)
    inputs = golden.get(name) if want is not None else None
    if inputs is None:
        inputs, want = np.stack(list(_stand_ins(variant, bundle))), None
    elif variant.inputs[0].dtype == "uint8":
        assert bundle.manifest.preprocessing is not None
        inputs = bytes_of(inputs, bundle.manifest.preprocessing)
    if variant.axes.head != "embeddings":
        return replay_head(bundle, opened, inputs, want, _allowed(want, variant))
    sizes = {
        size: n
        for size, n in zip(variant.inputs[0].shape, inputs.shape, strict=True)
        if isinstance(size, str)
    }
    slot = opened.slot(len(inputs), sizes)
    slot.inputs[name][:] = inputs
    found = run(opened, slot)[variant.outputs[0].name].astype(np.float64)
    _check_sane(found)
    if want is None:
        return f"{len(found)} made-up inputs, finite and different"
    return _compare(found, want.astype(np.float64), variant)


def _check_sane(found: Array) -> None:
    if not np.isfinite(found).all():
        raise CheckFailed("gives values that are not finite")
    if np.abs(np.linalg.norm(found, axis=1) - 1).max() > 1e-2:
        raise CheckFailed("gives rows that are not of unit length")
    if len(found) > 1 and np.ptp(found, axis=0).max() < SAME:
        raise CheckFailed("gives the same row for different inputs")


def _compare(found: Array, want: Array, variant: Variant) -> str:
    distances, allowed = np.linalg.norm(found - want, axis=1), _relative_bound(variant)
    if allowed is None:
        worst = float(np.abs(found - want).max())
        if not worst <= MAX_ABS_FP32:
            raise CheckFailed(f"is {worst:.1e} from the golden rows, {MAX_ABS_FP32:.0e} is allowed")
        return f"{len(found)} golden rows, at most {worst:.1e} away"
    relative = float(distances.mean() / _between(want))
    if not relative <= allowed:
        raise CheckFailed(f"relative distance to the golden rows is {relative:.4f}, {allowed:.3g} is allowed")
    return f"{len(found)} golden rows, relative distance {relative:.4f}"


def _relative_bound(variant: Variant) -> float | None:
    """Of the relative distance; None: the golden rows are to be met exactly."""
    if variant.axes.precision == "fp32" and not variant.axes.token_merging:
        return None
    stated = variant.fidelity.relative_distance if variant.fidelity else 0.0
    floor = MERGED if variant.axes.token_merging else 0.0
    return max(RELATIVE.get(variant.axes.precision, 0.0), SLACK * stated, floor)


def _between(rows: Array) -> float:
    """Median distance between different rows; 1 where there is but one."""
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)[np.triu_indices(len(rows), 1)]
    return float(np.median(distances)) if len(distances) else 1.0


def _allowed(want: Array | None, variant: Variant) -> float:
    """How far a cosine may be from the golden one: no further than its embedding may."""
    allowed = _relative_bound(variant)
    if want is None or allowed is None:
        return MAX_ABS_FP32
    return allowed * _between(want.astype(np.float64))


def _stand_ins(variant: Variant, bundle: Bundle) -> Iterator[Array]:
    """Two inputs that differ, for a graph without golden ones."""
    port = variant.inputs[0]
    for seed in (1, 2):
        if variant.tower == "image":
            shape = [size if isinstance(size, int) else 1 for size in port.shape[1:]]
            values = np.random.default_rng(seed).integers(0, 255, shape)
            yield values.astype(np.uint8) if port.dtype == "uint8" else (values / 128 - 1).astype(np.float32)
        else:
            settings = bundle.manifest.text
            assert settings is not None
            encoder = TextEncoder.open(bundle.path(settings.tokenizer), settings)
            yield encoder.encode(["a cat", "two dogs"]).input_ids[seed - 1]
