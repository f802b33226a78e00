"""Every setting of every config set to nonsense: a source loads, or is refused in one line; nothing else ever comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeclip.bundle import Detection
from edgeclip.errors import SourceError
from edgeclip.models.sources import load_source, save_source
from tests.checkpoints import openclip_config, write_hf, write_openclip
from tests.families.clip_moe import write_clip_moe
from tests.families.owlvit import write_owl
from tests.models.test_coca import config as coca_config
from tests.models.test_resnet import config as resnet_config

NONSENSE = (None, True, -1, 0, 2.5, float("nan"), 10**12, "x", [], [1, 2, 3], {"height": "x"})
# what transformers writes beside and no loader reads: spoiling it only takes time
UNREAD = {
    "architectures", "dtype", "torch_dtype", "transformers_version", "initializer_factor", "initializer_range", "attention_dropout",
    "dropout", "bos_token_id", "pad_token_id", "logit_scale_init_value", "backend", "is_local", "local_files_only", "errors",
    "tokenizer_class", "processor_class", "image_processor_type", "do_lower_case", "return_tensors", "data_format",
}  # fmt: skip
STRIDE = 5  # every setting meets a fifth of the nonsense, its neighbours the other fifths; 1 takes minutes


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A thousand small models load several times faster when nothing waits for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_small(folder: Path) -> Any:
    """A CLIPModel of one block a tower."""
    return write_hf(folder, layers=(1, 1))


def write_own(folder: Path) -> None:
    """edgeclip's own format."""
    write_small(folder.with_name("hf-of-own"))
    source = load_source(str(folder.with_name("hf-of-own")))
    save_source(
        folder, model=source.model, preprocessing=source.preprocessing, text=source.text,
        tokenizer_json=source.tokenizer_json, licence=source.licence,
    )  # fmt: skip


def write_own_detector(folder: Path) -> None:
    """edgeclip's own format, of a model that detects."""
    write_owl(folder.with_name("hf-of-own"), "owlv2-base-patch16")
    source = load_source(str(folder.with_name("hf-of-own")))
    own = Detection(preprocessing=source.preprocessing)
    save_source(
        folder, model=source.model, preprocessing=source.preprocessing, text=source.text,
        tokenizer_json=source.tokenizer_json, licence=source.licence, detection=own,
    )  # fmt: skip


def write_own_mixtures(folder: Path) -> None:
    """edgeclip's own format, of a model with experts."""
    write_clip_moe(folder.with_name("moe-of-own") / "moe.safetensors", experts=((2,), (0, 3)))
    source = load_source(str(folder.with_name("moe-of-own")))
    save_source(
        folder, model=source.model, preprocessing=source.preprocessing, text=source.text,
        tokenizer_json=source.tokenizer_json, licence=source.licence,
    )  # fmt: skip


# format -> how a folder is written, the files whose settings are spoilt
FORMATS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "Hugging Face": (write_small, ("config.json", "preprocessor_config.json", "tokenizer_config.json")),
    "OpenCLIP": (
        lambda folder: write_openclip(folder, openclip_config("tiny", (1, 1))),
        ("open_clip_config.json",),
    ),
    "CLIP's ResNets": (lambda folder: write_openclip(folder, resnet_config()), ("open_clip_config.json",)),
    "CoCa": (lambda folder: write_openclip(folder, coca_config()), ("open_clip_config.json",)),
    "OWLv2": (
        lambda folder: write_owl(folder, "owlv2-base-patch16"),
        ("config.json", "preprocessor_config.json"),
    ),
    "edgeclip": (write_own, ("config.json",)),
    "edgeclip's detectors": (write_own_detector, ("config.json",)),
    "edgeclip's mixtures": (write_own_mixtures, ("config.json",)),
}

SLOW = (
    "OWLv2",
    "edgeclip's detectors",
    "edgeclip's mixtures",
)  # each setting is read by code that the others reach too


@pytest.mark.parametrize(
    ("name", "file"),
    [
        pytest.param(name, file, marks=[pytest.mark.parity] if name in SLOW else [])
        for name, (_, files) in FORMATS.items()
        for file in files
    ],
)
def test_nonsense_loads_or_is_refused_in_one_line(name: str, file: str, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    FORMATS[name][0](folder)
    path = folder / file
    sound = json.loads(path.read_text())
    refused, escaped = 0, []
    read = [keys for keys in settings(sound) if keys[-1] not in UNREAD]
    for number, keys in enumerate(read):
        for value in NONSENSE[number % STRIDE :: STRIDE]:
            path.write_text(json.dumps(changed(sound, keys, value)))
            try:
                load_source(str(folder))
            except SourceError as error:
                refused += 1
                if "\n" in str(error):
                    escaped.append(f"{'.'.join(keys)} = {value!r}: more than one line")
            except Exception as error:
                escaped.append(f"{'.'.join(keys)} = {value!r}: {error!r}")
    assert escaped == []
    path.write_text(json.dumps(sound))
    load_source(str(folder))
    if file != "tokenizer_config.json":  # nonsense there is passed over, as transformers does
        assert refused > 0


def settings(data: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The way to every setting, sections included."""
    for key, value in data.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from settings(value, (*above, key))


def changed(data: dict[str, Any], keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy with one setting replaced."""
    first, *rest = keys
    return {**data, first: changed(data[first], tuple(rest), value) if rest else value}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_files_cut_anywhere_are_refused_in_one_line(share: float, tmp_path: Path) -> None:
    write_small(tmp_path / "sound")
    for file in ("config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"):
        folder = tmp_path / file
        shutil.copytree(tmp_path / "sound", folder)
        raw = (folder / file).read_bytes()
        (folder / file).write_bytes(raw[: int(len(raw) * share)])
        with pytest.raises(SourceError, match=file) as caught:
            load_source(str(folder))
        assert "\n" not in str(caught.value)
