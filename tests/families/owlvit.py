"""`OwlViTForObjectDetection` and `Owlv2ForObjectDetection` of transformers, at the sizes that were released."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.checkpoints import OPENAI, roughen, write_hf_tokenizer
from tests.families import Detected, Size, Write, Written
from tests.families.transformers_models import features, prepare, tokenize


@dataclass(frozen=True)
class Owl:
    """The sizes of one checkpoint, as its config.json has them; the depth of both towers."""

    version: int
    side: int
    patch: int
    image: tuple[int, int]  # width, heads
    text: tuple[int, int]
    layers: tuple[int, int] = (12, 12)


_BASE: Any = {"image": (768, 12), "text": (512, 8)}
_LARGE: Any = {"image": (1024, 16), "text": (768, 12), "layers": (24, 12), "patch": 14}
SIZES = {
    "owlvit-base-patch32": Owl(1, 768, 32, **_BASE),
    "owlvit-base-patch16": Owl(1, 768, 16, **_BASE),
    "owlvit-large-patch14": Owl(1, 840, **_LARGE),
    "owlv2-base-patch16": Owl(2, 960, 16, **_BASE),
    "owlv2-large-patch14": Owl(2, 1008, **_LARGE),
}
LENGTH = 16


def owl(name: str, size: Size) -> Owl:
    """A checkpoint's sizes: "tiny" keeps its version and the parity of its grid, and nothing else."""
    whole = SIZES[name]
    if size == "full":
        return whole
    if size == "real":
        return Owl(whole.version, whole.side, whole.patch, whole.image, whole.text, (1, 1))
    return Owl(whole.version, 6 * whole.patch // 2, whole.patch // 2, (64, 4), (32, 2), (1, 1))


def preprocessor(sizes: Owl) -> dict[str, Any]:
    """preprocessor_config.json as the repositories of google/owl* have it."""
    shared = {
        "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": OPENAI["mean"], "image_std": OPENAI["std"],
    }  # fmt: skip
    side = sizes.side
    if sizes.version == 2:
        square = {"height": side, "width": side}
        return {
            **shared,
            "image_processor_type": "Owlv2ImageProcessor",
            "do_pad": True,
            "resample": 2,
            "size": square,
        }
    return {
        **shared, "image_processor_type": "OwlViTImageProcessor", "resample": 3, "do_center_crop": False,
        "size": [side, side], "crop_size": [side, side],
    }  # fmt: skip


def write_owl(
    folder: Path,
    name: str,
    size: Size = "tiny",
    *,
    legacy_tokenizer: bool = True,
    vision: dict[str, Any] | None = None,
) -> Any:
    """A folder as google/owl* repositories are: vocab.json and merges.txt, padded with "!", which is id 0. -> the model itself."""
    import transformers

    sizes = owl(name, size)
    vocabulary = write_hf_tokenizer(
        folder, 200 if size == "tiny" else 48894, pad="!", legacy=legacy_tokenizer
    )
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": LENGTH}))
    towers = [
        {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
        }
        for (width, heads), layers in zip((sizes.image, sizes.text), sizes.layers, strict=True)
    ]
    ids = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": 0}
    kind = "OwlViT" if sizes.version == 1 else "Owlv2"
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vision_config={**towers[0], "image_size": sizes.side, "patch_size": sizes.patch, **(vision or {})},
        text_config={**towers[1], **ids, "vocab_size": vocabulary, "max_position_embeddings": LENGTH},
        projection_dim=sizes.text[0],
    )
    model = getattr(transformers, f"{kind}ForObjectDetection")(config).eval()
    roughen(model)
    # fresh texts are all alike, and fresh heads so loud that boxes and scores are at an end of their range
    with torch.no_grad():
        getattr(model, kind.lower()).text_model.embeddings.token_embedding.weight.mul_(20)
        for name, head in model.named_modules():
            if "_head." in name and isinstance(head, torch.nn.Linear):
                gain = 0.5 if head.out_features in (1, 4) else 1.5
                head.weight.mul_(gain * head.in_features**-0.5 / head.weight.std())
        model.class_head.logit_scale.bias.add_(8)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(sizes)))
    return model


def detect(model: Any, pixels: Tensor, ids: Tensor) -> Detected:
    """What transformers makes of every picture and every text: (N, 3, H, W) normalised pixels, (P, L) ids."""
    from transformers.image_transforms import center_to_corners_format

    # it takes the queries of each picture, one picture's after the other's
    found = model(pixel_values=pixels, input_ids=ids.repeat(len(pixels), 1))
    objectness = getattr(found, "objectness_logits", None)
    return Detected(
        boxes=center_to_corners_format(found.pred_boxes),
        scores=found.logits.sigmoid(),
        embeddings=found.class_embeds,
        objectness=None if objectness is None else objectness.sigmoid(),
    )


def _write(name: str) -> Write:
    def write(folder: Path, size: Size) -> Written:
        model = write_owl(folder, name, size)
        _, text = features(getattr(model, model.config.model_type))
        return Written(
            str(folder),
            text=text,
            tokenize=tokenize(folder, LENGTH),
            prepare=prepare(folder),
            detect=lambda pixels, ids: detect(model, pixels, ids),
        )

    return write


MODELS = {name: _write(name) for name in SIZES if name.startswith("owlvit")}
