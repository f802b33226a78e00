"""A teacher that starts where nano stands: the shipped bundle's towers, its image tower made wider and deeper without a change of what it says.

    python examples/nano/grow.py DATA BUNDLE FOLDER

New channels are read with weights of 0, new blocks add 0 (Chen et al. 2016, Net2Net, arXiv:1511.05641, with zeros in the place of
copies). The bundle's convolutions hold their batch norms; new norms are set so that they leave 248 drawings of DATA as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from pictograms import Pictograms
from recipe import CONFIG, LICENCE
from tokenizers import Tokenizer
from torch import Tensor, nn

import edgeclip
from edgeclip.models.loaders.native import save_source
from edgeclip.models.nano import ConvBlock, NanoCLIP, NanoConfig

TEACHER = replace(CONFIG, widths=(32, 64, 128, 416), depths=(0, 1, 4, 3))


def shipped(bundle: Path) -> dict[str, Tensor]:
    """Name -> weights of both towers, in float32, as the graphs hold them."""
    found: dict[str, Tensor] = {}
    for tower in ("image", "text"):
        graph = onnx.load(bundle / f"graphs/{tower}-fp16.onnx").graph
        for tensor in graph.initializer:
            values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            found[f"{tower}.{tensor.name.removesuffix('.fp16')}"] = values.float()
    # the weight of a Linear with one row is stored the other way round and without a name
    found["text.weight.weight"] = next(v.T for v in found.values() if v.shape == (CONFIG.text_width, 1))
    return found


def places(config: NanoConfig, norms: bool) -> list[list[str]]:
    """For every stage the names of its parts: the convolution that halves the side, what follows it, then the blocks. A graph has no norms."""
    stages, i = [], 0
    for depth in config.depths:
        first = i + 2 + norms
        stages.append([f"stages.{i}", f"stages.{i + 1}", *(f"stages.{first + k}" for k in range(depth))])
        i = first + depth
    return stages


@torch.no_grad()
def grown(weights: Mapping[str, Tensor], pixels: Tensor, config: NanoConfig = TEACHER) -> NanoCLIP:
    """A model of `config` that says of pictures and texts what nano says.

    Args:
        weights: of `shipped`.
        pixels: (P, 3, S, S) drawings that the new norms are set by.
    """
    model = NanoCLIP(config).eval()
    for name, parameter in model.text.named_parameters():
        parameter.copy_(weights[f"text.{name}"].view_as(parameter))
    parts = dict(model.image.named_modules())
    biases: dict[nn.Module, Tensor] = {}

    def convolution(new: nn.Module, norm: nn.Module, name: str) -> None:
        assert isinstance(new, nn.Conv2d)
        old = weights[f"image.{name}.weight"]
        new.weight[: len(old)] = 0
        new.weight[: len(old), : old.shape[1]] = old
        biases[norm] = weights[f"image.{name}.bias"]

    for there, here in zip(places(config, norms=True), places(CONFIG, norms=False), strict=True):
        convolution(parts[there[0]], parts[there[1]], here[0])
        for name, old in zip(there[2:], here[2:], strict=False):
            block = parts[name]
            assert isinstance(block, ConvBlock)
            convolution(block.conv1, block.norm1, f"{old}.conv1")
            convolution(block.conv2, block.norm2, f"{old}.conv2")
    model.image.projection.weight.zero_()[:, : CONFIG.widths[-1]] = weights["image.projection.weight"]
    model.image.projection.bias.copy_(weights["image.projection.bias"])
    blocks = [block for block in model.image.modules() if isinstance(block, ConvBlock)]
    for block in blocks:
        if block.norm2 not in biases:  # a block of its own: nothing is added yet
            nn.init.zeros_(block.norm2.weight)

    def set_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Of the old channels: the bias alone. Of new ones: mean 0 and deviation 1, as norms start."""
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        norm.running_var.copy_(inputs[0].var(dim=(0, 2, 3)))
        if norm in biases:
            old = len(biases[norm])
            norm.weight[:old] = (norm.running_var + norm.eps).sqrt()[:old]
            norm.bias[:old] = biases[norm] + norm.running_mean[:old]

    hooks = [
        part.register_forward_pre_hook(set_norm)
        for part in model.image.modules()
        if isinstance(part, nn.BatchNorm2d)
    ]
    model.image(pixels)
    for hook in hooks:
        hook.remove()
    return model


def main(data: Path, bundle: str, folder: Path) -> None:
    """Write the teacher's start as a source folder, after a look at whether it agrees with the bundle."""
    with edgeclip.load(bundle) as nano:
        manifest, path = nano.manifest, nano.bundle.root
        tokenizer = (path / "tokenizer.json").read_bytes()
        drawings = Pictograms(data, Tokenizer.from_str(tokenizer.decode()), steps=1, sides=((1.0, 64),))
        pixels = drawings.batch(0).pixels
        model = grown(shipped(path), pixels)
        model.logit_scale.data.fill_(float(torch.tensor(manifest.logit_scale).log()))
        pictures, texts = pixels[:64], drawings.names[:64]
        with torch.no_grad():
            own = nn.functional.normalize(model.encode_image(pictures), dim=-1)
            own_texts = nn.functional.normalize(model.encode_text(drawings.ids(texts)), dim=-1)
        for what, mine, theirs in (
            ("pictures", own, nano.embed_pixels(pictures.numpy())),
            ("texts", own_texts, nano.embed_texts(texts)),
        ):
            print(f"{what}: largest difference {float((mine - torch.from_numpy(theirs)).abs().max()):.1e}")
    save_source(
        folder,
        model=model,
        preprocessing=manifest.preprocessing,
        text=manifest.text,
        tokenizer_json=tokenizer,
        licence=LICENCE,
    )
    print(f"{folder}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
