"""What is asked of the embeddings. An objective is one file, one line here, one test.

An objective is a pure function of tensors: no rank, no gather, no cache inside. It asks for features by the names of its
parameters. Those that every run offers: `scale` () and `bias` () of the model, both as they multiply and add to the cosine.
Those of the encoder "pairs": `image` (B, D), `text` (B, D), `groups` (B,), and `image_b` (B, D), a second view. "mosaics" offers
the first three: there a pair's `image` may be its tile of a mosaic, so that CLIM's loss is `info_nce` itself. "regions" adds
`regions` (B, M, D), `region_texts` (B, M, D), `named` (B, M), `boxes` (B, M, 4) and, of a model that grounds texts, `grounded`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from edgeclip.errors import TrainingError
from edgeclip.models.training.settings import nearest

OBJECTIVES = {
    "info_nce": "edgeclip.models.training.objectives.info_nce",
    "sigmoid": "edgeclip.models.training.objectives.sigmoid",
    "multi_positive": "edgeclip.models.training.objectives.multi_positive",
    "image_contrast": "edgeclip.models.training.objectives.image_contrast",
    "region_text": "edgeclip.models.training.objectives.region_text",
    "grounding": "edgeclip.models.training.objectives.grounding",
}


def objective(name: str) -> Callable[..., Tensor]:
    """The function `name` of the module in the table.

    Raises:
        TrainingError: no such objective; names the nearest.
    """
    if name not in OBJECTIVES:
        raise TrainingError(
            f"objectives: no {name!r}{nearest(name, OBJECTIVES)} There are {', '.join(OBJECTIVES)}."
        )
    function: Callable[..., Tensor] = getattr(import_module(OBJECTIVES[name]), name)
    return function


class Objectives:
    """The weighted objectives of one run."""

    def __init__(self, entries: tuple[tuple[str | Callable[..., Any], float], ...]) -> None:
        self._terms: dict[str, tuple[Callable[..., Tensor], float, list[str]]] = {}
        for entry, weight in entries:
            function = objective(entry) if isinstance(entry, str) else entry
            name = entry if isinstance(entry, str) else getattr(entry, "__name__", type(entry).__name__)
            if name in self._terms:
                raise TrainingError(f"objectives: {name} stands there twice. Add up its weights.")
            self._terms[name] = function, weight, list(inspect.signature(function).parameters)
        self.wanted = {parameter for _, _, parameters in self._terms.values() for parameter in parameters}

    def __call__(self, features: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """-> (weighted sum, each term unweighted).

        Raises:
            TrainingError: a term asks for a feature that is not there.
        """
        values: dict[str, Tensor] = {}
        for name, (function, _, parameters) in self._terms.items():
            if missing := [parameter for parameter in parameters if parameter not in features]:
                hint = (
                    " The model has no logit_bias: set clip.logit_bias=true." if missing == ["bias"] else ""
                )
                raise TrainingError(
                    f"objectives: {name} asks for {', '.join(missing)}; there are {', '.join(features)}.{hint}"
                )
            values[name] = function(**{parameter: features[parameter] for parameter in parameters})
        total = sum(self._terms[name][1] * value for name, value in values.items())
        assert isinstance(total, Tensor)
        return total, values
