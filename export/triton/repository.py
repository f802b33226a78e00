"""The models that serve a bundle, and the folder that holds them.

    image              pixels -> embeddings                            requests share a batch
    text               input_ids -> embeddings                         requests share a batch
    zero_shot          pixels, input_ids -> logits, scores             N pictures against P texts
    zero_shot_prompts  pixels, prompt_embeddings -> logits, scores     N pictures against P vectors
    classifier         pixels -> logits, scores of fixed labels        requests share a batch
    detector           pixels -> boxes, region_embeddings, logit_scales, logit_biases[, objectness]; detector_labels: boxes, logits
    detector_prompts   pixels, prompt_embeddings, prompt_mask -> boxes, logits; NMS is the client's
    score, label_head  the arithmetic behind them, on the CPU: a few products of rows are not worth a trip to the GPU

N and P differ, and an ensemble that batches has one batch for all its tensors. So the zero-shot ensembles do not batch:
their tensors have every axis, and `image` and `text`, which batch, take the first one as theirs, each its own, merged
with those of other requests. Source: ReshapeTensorDims in ensemble_scheduler.cc of triton-inference-server/core.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from edgeclip.bundle import Bundle, Port, Scores
from edgeclip.errors import BundleError, InputError
from edgeclip.export.triton.config import (
    BACKENDS,
    TYPES,
    Message,
    Served,
    TritonSettings,
    ensemble_config,
    model_config,
    pbtxt,
)
from edgeclip.export.triton.scoring import OUTPUTS, scoring_graph
from edgeclip.export.triton.towers import Choice, choose
from edgeclip.files import new_folder, sha256_file, write_file
from edgeclip.runtime.labels import LabelPack

LABELS = "labels.txt"
HTTP_LIMIT = 64 << 20  # bytes of a request: tritonserver's own --http-max-input-size


@dataclass(frozen=True)
class Repository:
    """What was written."""

    path: Path
    models: tuple[Served, ...]
    notes: tuple[str, ...]  # what the operator must know

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        rows = [
            {
                "name": model.name,
                "platform": model.config["platform"],
                "max_batch_size": model.max_batch,
                "inputs": _shapes(model.config["input"]),
                "outputs": _shapes(model.config["output"]),
            }
            for model in self.models
        ]
        return {"path": str(self.path), "models": rows, "notes": list(self.notes)}


def write_repository(
    bundle: Bundle,
    output: Path,
    settings: TritonSettings,
    labels: LabelPack | None = None,
    *,
    overwrite: bool = False,
) -> Repository:
    """Write a Triton model repository. It appears whole or not at all.

    Args:
        labels: fixed ones for `classifier`; they take the place of what was baked into the bundle.
    Raises:
        InputError: the output is there, or nothing that the settings ask for; a pack of another model.
        EngineError: backend tensorrt, and no engine that can be served.
        BundleError: a file of the bundle changed meanwhile.
    """
    if output.resolve() == bundle.root or bundle.root in output.resolve().parents:
        raise InputError(f"{output}: lies in the bundle, which never changes. Choose another output.")
    plan = _Plan(bundle, settings, labels)
    models = tuple(plan.models())
    with new_folder(output, overwrite=overwrite) as scratch:
        for model in models:
            folder = scratch / model.name
            write_file(folder / "config.pbtxt", pbtxt(model.config))
            for name, content in model.files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                if isinstance(content, Path):
                    shutil.copyfile(content, folder / name)
                    _check_copy(content, folder / name, plan.hashes[model.name, name])
                else:
                    write_file(folder / name, content)
    return Repository(output, models, (*dict.fromkeys(plan.notes), *_limits(models, settings)))


class _Plan:
    """The models, one after another, with what was learnt of them on the way."""

    def __init__(self, bundle: Bundle, settings: TritonSettings, labels: LabelPack | None) -> None:
        self.bundle, self.facts, self.settings, self.labels = bundle, bundle.manifest, settings, labels
        self.notes: list[str] = []
        self.hashes: dict[tuple[str, str], str] = {}  # (model, file) -> SHA-256 of what is copied

    def models(self) -> Iterator[Served]:
        """Every model that the bundle and the settings allow."""
        known = [variant.id for variant in self.facts.variants]
        unknown = sorted({*self.settings.variants} - {*known})
        if (
            unknown and self.settings.backend == "onnxruntime"
        ):  # an engine may be of a graph that was made beside it
            raise InputError(f"{self.bundle.root}: no variant {unknown[0]!r}; it has {', '.join(known)}.")
        image = self._choice("image", "embeddings")
        text = self._choice("text", "embeddings")
        if image:
            yield (pictures := self._tower("image", image))
        if text:
            yield (texts := self._tower("text", text))
        if image:
            yield (score := self._head("score", self.facts.scores_of(image.variant), 0))
            if text:
                yield self._ensemble("zero_shot", image, [pictures, texts, score], text.variant.inputs)
            prompts = (Port("prompt_embeddings", "float32", ("P", self.facts.embedding_dim)),)
            yield self._ensemble("zero_shot_prompts", image, [pictures, score], prompts)
        if self.labels is not None:
            if image is None:
                raise InputError(
                    f"{self.bundle.root}: has no image tower that gives embeddings to compare with labels. "
                    "Serve it without labels, or take the bundle that it was baked from."
                )
            yield (head := self._head("label_head", self.facts.scores_of(image.variant), pictures.max_batch))
            yield self._ensemble("classifier", image, [pictures, head])
        elif baked := self._choice("image", "labels"):
            yield self._tower(
                "classifier", baked, LabelPack.open(self.bundle.path(baked.variant.labels)).labels
            )
        if image is None and (prompted := self._choice("image", "prompts")):
            yield self._tower("prompts", prompted)
        yield from self._detectors()

    def _detectors(self) -> Iterator[Served]:
        """Each head as it is: what follows, from NMS on, is the client's."""
        if found := self._choice("detector", "embeddings"):
            yield self._tower("detector", found)
        if prompted := self._choice("detector", "prompts"):
            yield self._tower("detector_prompts", prompted)
        if baked := self._choice("detector", "labels"):
            pack = LabelPack.open(self.bundle.path(baked.variant.labels))
            yield self._tower("detector_labels", baked, pack.labels)

    def _choice(self, tower: str, head: str) -> Choice | None:
        if not self.facts.variants_of(tower, head):
            return None
        return choose(self.bundle, tower, head, self.settings)

    def _tower(self, name: str, choice: Choice, labels: tuple[str, ...] = ()) -> Served:
        """One graph or engine. Where its inputs have batches of their own, the server must not merge requests."""
        name, variant = self.settings.prefix + name, choice.variant
        batched = all(port.shape[0] == "N" for port in variant.inputs)
        self.hashes |= {(name, f"1/{file}"): digest for file, digest in choice.hashes.items()}
        self.notes += choice.notes
        config = model_config(
            name,
            (variant.inputs, variant.outputs),
            self.settings,
            max_batch=choice.most if batched else 0,
            preferred=[size for size in (*choice.best, choice.most) if 1 < size <= choice.most],
            warm=choice.sizes,
            profiles=choice.profiles,
            labels={port.name: LABELS for port in variant.outputs if port.name in OUTPUTS}
            if labels
            else None,
        )
        files = {f"1/{file}": content for file, content in choice.files.items()}
        return Served(name, config, {**files, **_label_file(labels)})

    def _head(self, name: str, scores: Scores, max_batch: int) -> Served:
        """The arithmetic behind the embeddings, by onnxruntime on one core, whatever serves the towers."""
        labels = self.labels if max_batch else None
        if labels is not None:
            labels.require(self.facts.model_id, self.facts.embedding_dim)
        content, *ports = scoring_graph(self.facts, scores, labels.vectors if labels else None)
        on_cpu = replace(
            self.settings, backend="onnxruntime", gpus=(), threads=1, cuda_graphs=False, accelerator=""
        )
        name = self.settings.prefix + name
        config = model_config(
            name,
            (ports[0], ports[1]),
            on_cpu,
            max_batch=max_batch,
            labels=dict.fromkeys(OUTPUTS, LABELS) if labels else None,
        )
        files = {f"1/{BACKENDS['onnxruntime'][1]}": content, **_label_file(labels.labels if labels else ())}
        return Served(name, config, files)

    def _ensemble(
        self, name: str, image: Choice, models: Sequence[Served], others: Sequence[Port] = ()
    ) -> Served:
        """Towers, then the head that they feed; `others` are the ensemble's inputs beside the pixels."""
        *towers, head = models
        kinds = ("image_embeddings", "prompt_embeddings")
        steps = [
            (tower.name, {port["name"]: port["name"] for port in tower.config["input"]}, {"embeddings": kind})
            for tower, kind in zip(towers, kinds, strict=False)
        ]
        taken = {port["name"]: port["name"] for port in head.config["input"]}
        steps.append((head.name, taken, {port: port for port in OUTPUTS}))
        outputs = [Port(port, "float32", ("N", "P")) for port in OUTPUTS]
        if head.max_batch:
            assert self.labels is not None
            outputs = [replace(port, shape=("N", len(self.labels.labels))) for port in outputs]
        name = self.settings.prefix + name
        ports = ((*image.variant.inputs, *others), outputs)
        # an ensemble has a version, too; without a file git and object stores would drop its folder
        return Served(name, ensemble_config(name, ports, steps, head.max_batch), {"1/.keep": b""})


def _label_file(labels: Sequence[str]) -> dict[str, bytes]:
    """One name a line, which the server's classification extension reads."""
    return {LABELS: "".join(f"{' '.join(label.split())}\n" for label in labels).encode()} if labels else {}


def _check_copy(source: Path, copy: Path, digest: str) -> None:
    if sha256_file(copy) != digest:
        raise BundleError(
            f"{source}: was changed or damaged, its SHA-256 is not the manifest's. Export or pull the bundle again."
        )


def _shapes(ports: Sequence[Message]) -> dict[str, str]:
    return {port["name"]: f"{port['data_type']} {port['dims']}" for port in ports}


def _limits(models: Sequence[Served], settings: TritonSettings) -> Iterator[str]:
    """What the server must be told so that the largest request passes."""
    largest = max(
        (
            settings.max_batch * prod(port["dims"][-3:]) * (1 if port["data_type"] == TYPES["uint8"] else 4)
            for model in models
            for port in model.config["input"]
            if port["name"] == "pixels"
        ),
        default=0,
    )
    if largest > HTTP_LIMIT * 0.9:
        needed = int(largest * 1.2)
        yield (
            f"a request of {settings.max_batch} pictures has {largest / 1e6:.0f} MB, tritonserver takes "
            f"{HTTP_LIMIT / 1e6:.0f} MB; start it with --http-max-input-size={needed}"
        )
