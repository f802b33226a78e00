"""nano's detection head: its cells, what its embeddings begin as, and weights that leave the towers' identity alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from edgeclip.errors import SourceError
from edgeclip.models.nano import NanoCLIP, NanoConfig
from edgeclip.models.nano_detector import NanoDetector, NanoDetectorConfig, pyramid, split
from edgeclip.models.sources import load_source
from edgeclip.models.training.checkpoint import write_source
from tests.checkpoints import roughen
from tests.export.sources import nano_source

HEAD = NanoDetectorConfig(image_size=64, scales=2, width=8, blocks=1)


def detecting(rough: bool = True) -> tuple[NanoCLIP, NanoDetector]:
    """A small nano of two stages (strides 2 and 4) with a head."""
    old = nano_source().model
    assert isinstance(old, NanoCLIP)
    model = NanoCLIP(replace(old.config, detector=HEAD)).eval()
    assert model.detector is not None
    model.load_state_dict(old.state_dict(), strict=False)
    model.detector.head.start_from(model.image.projection)
    if rough:
        roughen(model.detector)
        _liven(model.detector)
    return model, model.detector


def _liven(detector: NanoDetector) -> None:
    """Let every output differ from cell to cell, objectness around a half: random weights alone give all cells the same."""
    output = detector.head.output
    said: list[torch.Tensor] = []
    watch = output.register_forward_hook(lambda module, inputs, result: said.append(result.flatten(2)))
    with torch.no_grad():
        detector(torch.rand(2, 3, 64, 64))
        values = torch.cat(said, 2)
        spread, mean = values.std((0, 2)), values.mean((0, 2))
        output.weight.div_(spread[:, None, None, None])
        output.bias.sub_(mean).div_(spread)  # type: ignore[union-attr]
        output.bias[6] += 4.6  # type: ignore[index]
    watch.remove()


def test_cells_stand_on_their_grids_finest_first() -> None:
    _, detector = detecting(rough=False)
    with torch.no_grad():
        found = detector(torch.zeros(2, 3, 64, 64))
    assert found.boxes.shape == (2, 32 * 32 + 16 * 16, 4)
    centre = (found.boxes[0, :, :2] + found.boxes[0, :, 2:]) / 2
    side = found.boxes[0, :, 2:] - found.boxes[0, :, :2]
    # (column + 0.5) x stride / 64: the second cell of the first row, the first of the second row, the last of the coarse grid
    want = torch.tensor([[3.0, 1.0], [1.0, 3.0], [62.0, 62.0]]) / 64
    torch.testing.assert_close(centre[[1, 32, -1]], want)
    assert float(side[0, 0]) * 2 == pytest.approx(float(side[-1, 0]))
    assert found.objectness is not None
    assert float(found.objectness.max()) < 0.02, "an untrained head finds nothing"


def test_an_embedding_begins_as_the_classifiers_own() -> None:
    model, detector = detecting(rough=False)
    features = [(torch.rand(1, 8, s, s), torch.ones(1, 16, s // 2, s // 2) * 0.3) for s in (32, 16)]
    with torch.no_grad():
        found = detector.head(features).embeddings
        want = model.image.projection(torch.full((16,), 0.3))
    torch.testing.assert_close(found, want.expand_as(found))


def test_a_half_is_seen_as_a_picture_of_half_the_size_is() -> None:
    model, _ = detecting()
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        (fine, coarse), (_, half) = pyramid(model.image.stages, pixels, 2)
        assert fine.shape[1:] == (8, 32, 32)
        assert split(model.image.stages)[1:] == (8, 16)
        torch.testing.assert_close(coarse, model.image.stages(pixels))
        smaller = F.interpolate(pixels, size=(32, 32), mode="area")
        torch.testing.assert_close(half, model.image.stages(smaller))


def test_gradients_reach_the_head_alone() -> None:
    model, detector = detecting()
    assert {name.split(".")[0] for name, _ in detector.named_parameters()} == {"head"}
    features = detector.features(torch.rand(1, 3, 64, 64))
    found = detector.head([(a.detach(), b.detach()) for a, b in features])
    (found.boxes.sum() + found.embeddings.sum() + found.scales.sum() + found.objectness.sum()).backward()
    assert all(p.grad is None for p in model.image.parameters())
    assert all(p.grad is not None for p in detector.parameters())


def test_a_head_leaves_the_towers_digest_alone(tmp_path: Path) -> None:
    source = nano_source()
    write_source(tmp_path / "plain", source)
    model, detector = detecting()
    write_source(tmp_path / "both", replace(source, model=model))
    plain, both = (load_source(str(tmp_path / name)) for name in ("plain", "both"))
    assert both.digest == plain.digest
    assert set(load_file(tmp_path / "both/apart.safetensors")) == {
        key for key in model.state_dict() if key.startswith("detector.")
    }
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for got, want in zip(both.model.detector(pixels), detector(pixels), strict=True):  # type: ignore[operator]
            torch.testing.assert_close(got, want, rtol=0, atol=0)
    (tmp_path / "both/apart.safetensors").unlink()
    with pytest.raises(SourceError, match=r"tensor 'detector\.head\..* is missing"):
        load_source(str(tmp_path / "both"))


def test_settings_come_back() -> None:
    config = NanoConfig(detector=HEAD)
    assert NanoConfig.from_json(config.to_json()) == config
    old = config.to_json()
    del old["detector"]  # as it was written before there were detectors
    assert NanoConfig.from_json(old).detector is None
