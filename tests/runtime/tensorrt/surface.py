"""TensorRT's Python packages as their releases' attributes: stand-ins that refuse any other, for what cannot run here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edgeclip.runtime.tensorrt.library import Library

_TABLE = json.loads(Path(__file__).with_name("api_surface.json").read_text())
RELEASES: list[str] = _TABLE["releases"]
CLASSES: dict[str, dict[str, Any]] = _TABLE["classes"]


def attributes(name: str, release: str) -> set[str]:
    """What a class has in a release; nothing where the release has no such class."""
    row = CLASSES[name]
    return set(row["all"]) | {word for word, having in row["some"].items() if release in having}


class Strict:
    """An object of one class in one release. Attributes that it was not given are calls that answer None; all are kept in `log`."""

    def __init__(self, name: str, release: str, log: list[Any], **known: Any) -> None:
        self.__dict__.update(_name=name, _release=release, _log=log, _known=known)

    def _check(self, word: str) -> None:
        if word not in attributes(self._name, self._release):
            raise AttributeError(f"{self._release}: {self._name} has no {word}")

    def __getattr__(self, word: str) -> Any:
        if word.startswith("__"):
            raise AttributeError(word)
        self._check(word)
        answer = self._known.get(word)
        if word in self._known and not callable(answer):
            return answer

        def call(*given: Any) -> Any:
            self._log.append((word, *given))
            return answer(*given) if answer else None

        return call

    def __setattr__(self, word: str, value: Any) -> None:
        self._check(word)
        self._log.append((word, value))


class Member(str):
    """A member of an enumeration."""

    def __int__(self) -> int:
        return 0


class Enumeration:
    """An enumeration with the members of one release."""

    def __init__(self, name: str, release: str) -> None:
        self.__dict__.update(_name=name, _release=release)

    @property
    def __members__(self) -> dict[str, Member]:
        return {word: Member(word) for word in attributes(self._name, self._release)}

    def __getattr__(self, word: str) -> Member:
        if word not in attributes(self._name, self._release):
            raise AttributeError(f"{self._release}: {self._name} has no {word}")
        return Member(word)


class _Base:
    """Something to derive from: ILogger, IProgressMonitor."""


def library(release: str, log: list[Any], shape: tuple[int, ...] = (-1, 3, 32, 32), **known: Any) -> Library:
    """A release whose builder takes a graph with one input, `pixels`, and answers with the plan b"plan".

    Args:
        log: gets what is called and set, in order.
        known: attribute -> value or function, over those of the objects made here.
    """
    name, version = release.split()

    def made(kind: str, **more: Any) -> Strict:
        mine = {word: known[word] for word in known if word in attributes(kind, release)}
        return Strict(kind, release, log, **{**more, **mine})

    network = made(
        "INetworkDefinition", num_inputs=1, get_input=lambda i: SimpleNamespace(name="pixels", shape=shape), num_layers=0
    )  # fmt: skip
    cache = made("ITimingCache", serialize=lambda: b"measured")
    config = made(
        "IBuilderConfig", create_timing_cache=lambda blob: cache, set_timing_cache=lambda *_: True, get_timing_cache=lambda: cache
    )  # fmt: skip
    builder = made(
        "Builder",
        create_network=lambda flags: network,
        create_builder_config=lambda: config,
        create_optimization_profile=lambda: made("IOptimizationProfile"),
        build_serialized_network=lambda *_: b"plan",
    )
    enumerations = {
        kind: Enumeration(kind, release) for kind, row in CLASSES.items() if _is_enumeration(kind, row)
    }
    module = SimpleNamespace(
        **enumerations,
        ILogger=type("ILogger", (_Base,), {}),
        IProgressMonitor=type("IProgressMonitor", (_Base,), {}),
        Builder=lambda logger: builder,
        OnnxParser=lambda network, logger: made("OnnxParser", parse_from_file=lambda path: True),
    )
    return Library(name, module, version)


def _is_enumeration(kind: str, row: dict[str, Any]) -> bool:
    return all(word.isupper() for word in [*row["all"], *row["some"]] if word not in ("name", "value"))
