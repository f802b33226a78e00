"""Compare an exported region encoder with its source: tokens of pictures, and what boxes and texts find in the source's own tokens."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from edgeclip.bundle import Bundle, Variant
from edgeclip.errors import EdgeClipError
from edgeclip.export.parity import STEADY, TOLERANCES, Parity
from edgeclip.export.proofs import Material
from edgeclip.export.samples import pixels_of
from edgeclip.models.regions import whole
from edgeclip.models.source import Source
from edgeclip.runtime.detection_fidelity import measure_rows
from edgeclip.runtime.engines import Engine, EngineOptions, open_engine
from edgeclip.runtime.images import bytes_of
from edgeclip.runtime.verify_regions import KEPT, check_regions, made_up_boxes, run_tower, tiled, unit_rows

Array = NDArray[Any]
Said = dict[str, Array]  # what a tower gives, by output name

BOXES, TEXTS = 17, 8  # that are asked of each picture
ROWS = (1, 3, BOXES)  # so many at once give each the same
TOKENS = 20_000  # pictures that give so many tokens are compared, FEW at least
FEW, MOST = 3, 16
LARGE = 1025  # tokens from which pictures run one and two at a time, for memory
# Times the source's own rounding, its distance to itself in float64: what a graph may differ by where that is much, as in a prompter
# that looks at few tokens (3e-6 was seen at scores of 100; 1e-7 of one that was not trained).
ROUNDING = 4
BOX = 1e-5  # largest difference of a grounded box's corner, 0-1, in fp32


def open_proof(source: Source, kind: str, material: Material) -> RegionProof:
    """See proofs.py."""
    return RegionProof(source, kind, material)


class RegionProof:
    """What one of a source's towers for regions says."""

    def __init__(self, source: Source, kind: str, material: Material) -> None:
        self.source, self.kind, self.material = source, kind, material
        assert source.preprocessing is not None
        self.spec = whole(source.preprocessing)
        pictures = list(material.pictures[:MOST])
        pixels = pixels_of(pictures, self.spec)
        tokens = self._tokens(pixels[:1]).shape[1]
        self.batches = (1, 2) if tokens > LARGE else (1, 3)
        count = max(FEW, min(len(pixels), TOKENS // tokens))
        pixels = pixels[:count]
        # of pixels as the golden file holds them, which are the classifier's
        golden = self._tokens(pixels_of(list(material.golden), source.preprocessing))
        self.kept = np.arange(0, tokens, -(-tokens // KEPT))
        self.golden_tokens = golden[:, self.kept]
        self.rounding = 0.0
        if kind == "tokens":
            self.inputs: dict[str, Array] = {"pixels": pixels}
            self.want: Said = {"tokens": self._tokens(pixels)}
        else:
            self.name, asked = self._asked()
            self.inputs = {"tokens": self._tokens(pixels), self.name: np.repeat(asked[None], count, axis=0)}
            self.want = self._ask(self.inputs["tokens"], self.inputs[self.name])
            exact = self._ask(*(self.inputs[name].astype(np.float64) for name in ("tokens", self.name)))
            self.rounding = ROUNDING * _apart(self.want, exact)
        check_regions(self.want, f"{source.spec}: {kind} tower of the source")

    def golden(self) -> Said:
        """See runtime/replay.py."""
        if self.kind == "tokens":
            return {
                "tokens/rows": self.kept.astype(np.int64),
                "tokens/tokens": np.ascontiguousarray(self.golden_tokens),
            }
        _, asked = self._asked()
        asked = asked[: len(asked) // 2 + 1]
        tokens = tiled(self.golden_tokens, self.inputs["tokens"].shape[1])
        said = self._ask(tokens, np.repeat(asked[None], len(tokens), axis=0))
        return {f"{self.kind}/{name}": array for name, array in {self.name: asked, **said}.items()}

    def compare(self, bundle: Bundle, variant: Variant) -> Parity:
        """See proofs.py."""
        fidelity = batches = None
        failures: list[str] = []
        inputs = self.inputs
        if variant.inputs[0].dtype == "uint8":
            inputs = {"pixels": bytes_of(inputs["pixels"], self.spec)}
        try:
            options = EngineOptions(threads=self.material.threads)
            engine = open_engine("onnxruntime-cpu", bundle.root / variant.files[0], variant, options)
            try:
                found = self._run(engine, inputs, self.batches[-1])
                check_regions(found, "the graph")
                a, b = (_rows(side) for side in (self.want, found))
                fidelity = measure_rows(a, b)
                failures += self._gate(
                    variant, found, getattr(fidelity, TOLERANCES[variant.axes.precision][0])
                )
                batches = self._steady(engine, inputs, found)
            finally:
                engine.close()
        except EdgeClipError as error:
            failures.append(str(error))
        steady = max(STEADY, self.rounding)
        if batches is not None and not batches <= steady:
            failures.append(
                f"rows differ by {batches:.1e} with what is asked beside them, {steady:.0e} is allowed"
            )
        return Parity(
            variant.id, fidelity, batches, None, tuple(f"{variant.id}: {line}" for line in failures)
        )

    def _gate(self, variant: Variant, found: Said, value: float) -> list[str]:
        figure, largest = TOLERANCES[variant.axes.precision]
        largest = self.material.tolerance or max(largest, self.rounding)
        failures = (
            [] if value <= largest else [f"{figure} to the source is {value:.2e}, {largest:.0e} is allowed"]
        )
        if "boxes" in found:
            off = float(np.abs(found["boxes"] - self.want["boxes"]).max())
            if not off <= BOX:
                failures.append(f"boxes are {off:.1e} from the source's, {BOX:.0e} is allowed")
        return failures

    def _run(self, engine: Engine, inputs: Said, batch: int) -> Said:
        count = len(next(iter(inputs.values())))
        parts = [
            run_tower(engine, {name: array[i : i + batch] for name, array in inputs.items()})
            for i in range(0, count, batch)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _steady(self, engine: Engine, inputs: Said, found: Said) -> float:
        """Largest difference to `found` at other numbers of pictures, of boxes and of texts; of rows of unit length, and of boxes."""
        worst = 0.0
        for batch in self.batches:
            worst = max(worst, _apart(self._run(engine, inputs, batch), found))
        if self.kind != "tokens":
            for rows in ROWS:
                fewer = {**inputs, self.name: inputs[self.name][:, :rows]}
                same = {name: array[:, :rows] for name, array in found.items()}
                worst = max(worst, _apart(self._run(engine, fewer, self.batches[-1]), same))
        return worst

    def _tokens(self, pixels: Array) -> Array:
        tower = self.source.model.tokens
        assert isinstance(tower, nn.Module)
        return _numpy(tower, pixels)[0]

    def _asked(self) -> tuple[str, Array]:
        """-> (input's name, (R, 4) boxes or (P, D) unit rows of texts)."""
        if self.kind == "regions":
            return "boxes", made_up_boxes(BOXES)
        rows = self.material.text_rows
        if rows is None:
            rows = unit_rows(np.sin(np.arange(TEXTS * self.source.embedding_dim)).reshape(TEXTS, -1)).astype(
                np.float32
            )
        return "prompt_embeddings", rows[:TEXTS]

    def _ask(self, tokens: Array, asked: Array) -> Said:
        tower = getattr(self.source.model, self.kind)
        if tokens.dtype == np.float64:
            tower = copy.deepcopy(tower).double()
        found = _numpy(tower, tokens, asked)
        unit = F.normalize(torch.from_numpy(found[0]), dim=-1).numpy()
        return dict(zip(("embeddings", "boxes"), (unit, *found[1:]), strict=False))


def _numpy(tower: nn.Module, *inputs: Array) -> list[Array]:
    """A tower's outputs, of a picture at a time: attention over 4,096 tokens needs 0.8 GB."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        parts = []
        for i in range(len(inputs[0])):
            found = tower(*(torch.from_numpy(array[i : i + 1]) for array in inputs))
            parts.append(found if isinstance(found, tuple) else (found,))
        return [torch.cat(rows).numpy() for rows in zip(*parts, strict=True)]


def _rows(said: Said) -> Array:
    rows = next(array for name, array in said.items() if name != "boxes")
    return unit_rows(rows).reshape(-1, rows.shape[-1])


def _apart(a: Said, b: Said) -> float:
    return max(
        float(np.abs((x - y) if name == "boxes" else unit_rows(x) - unit_rows(y)).max())
        for name, x, y in ((name, array, b[name]) for name, array in a.items())
    )
