"""How pictures are prepared: preprocessor_config.json over the defaults of the image processor that it names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from edgeclip.bundle.manifest import Preprocessing
from edgeclip.errors import SourceError
from edgeclip.models.loaders import common
from edgeclip.models.loaders.checkpoint import read_json

_RESAMPLE: dict[Any, Any] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_CLIP: dict[str, Any] = {
    **{"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224, "resample": 3},
    **{"image_mean": common.OPENAI_MEAN, "image_std": common.OPENAI_STD},
}
_HALF: dict[str, Any] = {
    **{"size": {"height": 224, "width": 224}, "do_center_crop": False},
    **{"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3},
}
# Pads to a square, below and on the right, before it scales as scikit-image does: neither is said in the file.
_OWLV2: dict[str, Any] = {
    **{"size": {"height": 960, "width": 960}, "do_center_crop": False, "do_pad": True, "resample": 2},
    **{"image_mean": common.OPENAI_MEAN, "image_std": common.OPENAI_STD, "square": True},
}
_OWLVIT: dict[str, Any] = {
    **{"size": {"height": 768, "width": 768}, "do_center_crop": False, "crop_size": 768, "resample": 3},
    **{"image_mean": common.OPENAI_MEAN, "image_std": common.OPENAI_STD, "square": True},
}
# image_processor_type, without the ending of its backend -> what transformers takes for a key that the file leaves out
PROCESSORS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP,
    "CLIPFeatureExtractor": _CLIP,
    "ChineseCLIPImageProcessor": _CLIP,
    "ChineseCLIPFeatureExtractor": _CLIP,
    "BitImageProcessor": _CLIP,
    "OwlViTImageProcessor": _OWLVIT,
    "OwlViTFeatureExtractor": _OWLVIT,
    "Owlv2ImageProcessor": _OWLV2,
    "SiglipImageProcessor": {**_HALF, "resample": 3},
    "ViTImageProcessor": {**_HALF, "resample": 2, "square": True},
    "ViTFeatureExtractor": {**_HALF, "resample": 2, "square": True},
}
_BACKENDS = ("Fast", "Pil")
# Further steps, each another way of preparing pictures where it is on.
_STEPS = ("do_pad", "do_flip_channel_order", "do_reduce_labels", "crop_pct")


def read_preprocessing(
    folder: Path, image_size: tuple[int, int], default: str = "CLIPImageProcessor"
) -> Preprocessing:
    """From preprocessor_config.json, or processor_config.json of newer releases.

    Where transformers' processors on Pillow and on tensors differ, Pillow's is meant: weights were trained with it.

    Args:
        image_size: (H, W) that the image tower takes.
        default: the image processor of files that name none.
    Raises:
        SourceError: there is no such file, or what it says is unclear, unknown or for pictures of another size.
    """
    path = folder / "preprocessor_config.json"
    if path.is_file():
        data = read_json(path)
    else:
        path = folder / "processor_config.json"
        data = read_json(path).get("image_processor") if path.is_file() else None  # type: ignore[assignment]
        if not isinstance(data, dict):
            raise SourceError(
                f"{folder}: no preprocessor_config.json, so how pictures are prepared is unknown. "
                "Copy it from the model that this one was trained from."
            )
    defaults = _defaults(data, path, default)
    data = {**defaults, **{key: value for key, value in data.items() if value is not None}}
    # "rescale": in the first files of OWL-ViT
    if not data.get("do_resize", True) or not data.get("do_rescale", data.get("rescale", True)):
        raise SourceError(f"{path}: do_resize and do_rescale must be true.")
    padded = defaults.get("do_pad", False)
    if padded and (data["do_pad"] is not True or data["resample"] != defaults["resample"]):
        raise SourceError(
            f"{path}: expected do_pad true and resample {defaults['resample']}, got {data['do_pad']!r} and {data['resample']!r}."
        )
    if step := next((name for name in _STEPS if data.get(name) and not defaults.get(name)), None):
        raise SourceError(f"{path}: {step} is {data[step]!r}, which edgeclip cannot do.")
    factor, resample = data.get("rescale_factor", 1 / 255), data["resample"]
    if type(factor) not in (int, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise SourceError(f"{path}: rescale_factor is {factor!r}, expected 1/255.")
    if type(resample) is not int or resample not in _RESAMPLE:
        raise SourceError(f"{path}: resample is {resample!r}, expected one of {list(_RESAMPLE)}.")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if data.get("do_normalize", True):
        mean = common.triple(data["image_mean"], f"{path}: image_mean")
        std = common.stds(data["image_std"], f"{path}: image_std")
    size, resize = _sizes(data, path)
    if size != image_size:
        raise SourceError(f"{path}: makes pictures of {size}, but the image tower takes {image_size} (H, W).")
    if padded:
        return Preprocessing(size, "pad", "gaussian", mean, std, pad_anchor="top_left", pad_first=True)
    return Preprocessing(
        size=size,
        mode="shortest_crop" if resize else "squash",
        resample=_RESAMPLE[resample],
        mean=mean,
        std=std,
        resize=resize,
    )


def _defaults(data: dict[str, Any], path: Path, default: str) -> dict[str, Any]:
    named = data.get("image_processor_type") or data.get("feature_extractor_type") or default
    kind = str(named)
    for backend in _BACKENDS:
        kind = kind.removesuffix(backend)
    if kind not in PROCESSORS:
        raise SourceError(
            f"{path}: image_processor_type is {named!r}, expected one of {', '.join(PROCESSORS)} "
            f"(also with {' or '.join(_BACKENDS)})."
        )
    return PROCESSORS[kind]


def _sizes(data: dict[str, Any], path: Path) -> tuple[tuple[int, int], int]:
    """-> ((H, W) of the result, target of the shorter side or 0 for squashing)."""
    size = data["size"]
    if type(size) is int:
        size = [size, size] if data.get("square") else {"shortest_edge": size}
    if isinstance(size, list) and len(size) == 2:  # as OWL-ViT's first files have it
        size = {"height": size[0], "width": size[1]}
    crop = data.get("crop_size", 224) if data["do_center_crop"] else None
    if isinstance(crop, dict):
        crop = [crop.get("height"), crop.get("width")]
    cropped = common.pair(crop, f"{path}: crop_size") if crop is not None else None
    if isinstance(size, dict) and "shortest_edge" in size and cropped:
        shorter, _ = common.pair(size["shortest_edge"], f"{path}: shortest_edge")
        if shorter < max(cropped):
            raise SourceError(
                f"{path}: the shorter side is scaled to {shorter}, less than the crop {cropped}."
            )
        return cropped, shorter
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        squashed = common.pair([size["height"], size["width"]], f"{path}: size")
        if cropped in (None, squashed):
            return squashed, 0
    raise SourceError(
        f"{path}: size {size!r} with crop {crop!r} is not a way of preparing pictures that edgeclip knows."
    )
