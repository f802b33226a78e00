"""SigLIP and SigLIP 2 that transformers wrote: what would go wrong silently, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors
from torch.nn.functional import normalize

from edgeclip.errors import SourceError
from edgeclip.models.clip import Clip
from edgeclip.models.config import ClipConfig, TransformerConfig
from edgeclip.models.loaders.huggingface.blocks import ACTIVATIONS
from edgeclip.models.loaders.huggingface.preprocessing import PROCESSORS, read_preprocessing
from edgeclip.models.loaders.huggingface.siglip import read_config
from edgeclip.models.source import Source
from edgeclip.models.sources import load_source
from edgeclip.runtime.images import preprocess
from edgeclip.runtime.text import TextEncoder
from tests.checkpoints import TEXTS, fixed_pixels
from tests.corpus import corpus
from tests.families.siglip import write_siglip
from tests.families.transformers_models import features, tokenize
from tests.models.agreement import TOLERANCE
from tests.photographs import pictures
from tests.sentencepieces import trained


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("siglip")
    return folder, write_siglip(folder)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip2")
    write_siglip(folder, texts="gemma")
    return folder


def encoded(source: Source, texts: list[str]) -> torch.Tensor:
    tokenizer = Tokenizer.from_str(source.tokenizer_json.decode())
    return torch.from_numpy(TextEncoder(tokenizer, source.text).encode(texts).input_ids).long()


def blocks(tower: str, **changes: Any) -> Callable[[ClipConfig], ClipConfig]:
    def change(config: ClipConfig) -> ClipConfig:
        found = getattr(config, tower)
        return replace(config, **{tower: replace(found, blocks=replace(found.blocks, **changes))})

    return change


def text(**changes: Any) -> Callable[[ClipConfig], ClipConfig]:
    return lambda config: replace(config, text=replace(config.text, **changes))


def image(**changes: Any) -> Callable[[ClipConfig], ClipConfig]:
    return lambda config: replace(config, image=replace(config.image, **changes))


# What a loader may get wrong -> the tower that moves
FAULTS = {
    "exact GELU in pictures": (blocks("image", activation="gelu"), 0),
    "exact GELU in texts": (blocks("text", activation="gelu"), 1),
    "QuickGELU in pictures": (blocks("image", activation="quick_gelu"), 0),
    "epsilon 1e-5 in pictures": (blocks("image", norm_eps=1e-5), 0),
    "epsilon 1e-5 in texts": (blocks("text", norm_eps=1e-5), 1),
    "the norm behind the pool": (image(norm_after_pool=True), 0),
    "texts pooled at their end": (text(pool="eos", eos_id=1), 1),
    "texts pooled at their start": (text(pool="first"), 1),
    "a causal mask": (text(causal=True), 1),
    "padding hidden": (text(mask_padding=True, pad_id=1), 1),
}


def apart(source: Source, model: Any, other: Clip) -> tuple[float, float]:
    """Largest differences of unit vectors, images and texts."""
    inputs = fixed_pixels(2, *source.preprocessing.size), encoded(source, TEXTS)
    with torch.no_grad():
        ours = [normalize(x, dim=-1) for x in (other.encode_image(inputs[0]), other.encode_text(inputs[1]))]
        theirs = [normalize(f(x), dim=-1) for f, x in zip(features(model), inputs, strict=True)]
    found = [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]
    return found[0], found[1]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault: str, sound: tuple[Path, Any]) -> None:
    folder, model = sound
    source = load_source(str(folder))
    assert max(apart(source, model, source.model)) <= TOLERANCE
    change, tower = FAULTS[fault]
    other = Clip(change(source.model.config)).eval()
    other.load_state_dict(source.model.state_dict())
    found = apart(source, model, other)
    assert found[tower] > 2 * TOLERANCE, found
    assert found[1 - tower] <= TOLERANCE, found


def test_the_pools_packed_projection_is_split_in_order(sound: tuple[Path, Any]) -> None:
    folder, model = sound
    source = load_source(str(folder))
    packed = model.vision_model.head.attention.in_proj_weight
    head = source.model.image.head
    torch.testing.assert_close(head.q.weight, packed[:64])
    torch.testing.assert_close(head.kv.weight, packed[64:])


def test_scores_are_sigmoids_of_scale_and_bias(sound: tuple[Path, Any]) -> None:
    folder, model = sound
    source = load_source(str(folder))
    pixels, ids = fixed_pixels(2, 32, 32), encoded(source, TEXTS)
    with torch.no_grad():
        theirs = model(input_ids=ids, pixel_values=pixels).logits_per_image
        torch.testing.assert_close(source.model(pixels, ids), theirs, rtol=0, atol=1e-5)
    assert source.activation == "sigmoid"
    assert not torch.allclose(theirs.softmax(-1), theirs.sigmoid(), atol=0.1)


def test_keys_left_out_of_the_config_take_transformers_defaults(tmp_path: Path) -> None:
    from transformers import SiglipConfig

    theirs, ours = SiglipConfig(), read_config({"vision_config": {}, "text_config": {}}, tmp_path)
    for their, our in ((theirs.vision_config, ours.image.blocks), (theirs.text_config, ours.text.blocks)):
        assert our == TransformerConfig(
            width=their.hidden_size,
            layers=their.num_hidden_layers,
            heads=their.num_attention_heads,
            mlp_width=their.intermediate_size,
            activation=ACTIVATIONS[their.hidden_act],
            norm_eps=their.layer_norm_eps,
        )
    vision, texts = theirs.vision_config, theirs.text_config
    assert (ours.image.image_size, ours.image.patch_size) == ((vision.image_size,) * 2, vision.patch_size)
    assert (ours.text.vocab_size, ours.text.context_length) == (
        texts.vocab_size,
        texts.max_position_embeddings,
    )
    assert ours.embed_dim == texts.projection_size


@pytest.mark.parametrize("second_one", [False, True])
def test_padding_matters_so_that_length_is_fixed(
    second_one: bool, sound: tuple[Path, Any], second: Path
) -> None:
    source = load_source(str(second if second_one else sound[0]))
    assert source.text.dynamic_length is False
    ids = encoded(source, ["a cat"])
    assert ids.shape == (1, 64)
    length = int((ids != source.text.pad_id).sum()) + int(source.text.pad_id == source.text.eos_id)
    with torch.no_grad():
        whole, cut = source.model.encode_text(ids), source.model.encode_text(ids[:, :length])
    assert float((normalize(whole, dim=-1) - normalize(cut, dim=-1)).abs().max()) > 0.01


def test_siglip_2_lower_cases_whatever_the_tokenizers_class(second: Path, tmp_path: Path) -> None:
    """Older repositories name GemmaTokenizer, which leaves case alone; the weights were trained on lower case."""
    from transformers import GemmaTokenizer, Siglip2Tokenizer

    shutil.copytree(second, tmp_path, dirs_exist_ok=True)
    file = json.loads((tmp_path / "tokenizer.json").read_text())
    file["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    file["post_processor"] = None  # tokenizer_config.json says what ends a text
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="GemmaTokenizerFast", add_eos_token=True)
    texts = corpus()
    padded = {"padding": "max_length", "max_length": 64, "truncation": True}
    ours = encoded(load_source(str(tmp_path)), texts).tolist()
    assert ours == Siglip2Tokenizer.from_pretrained(second)(texts, **padded).input_ids
    plain = GemmaTokenizer.from_pretrained(tmp_path)(texts, **padded).input_ids
    assert sum(a != b for a, b in zip(ours, plain, strict=True)) > 1000, "case makes no difference"


def test_siglip_2_from_the_model_file_alone(second: Path, tmp_path: Path) -> None:
    shutil.copytree(second, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(trained("gemma"))
    texts = [text for text in corpus() if "<p>" not in text.lower()]  # whole pieces of this model only
    ours, theirs = (encoded(load_source(str(folder)), texts).tolist() for folder in (tmp_path, second))
    assert ours == theirs


@pytest.mark.parametrize("only", [True, False])
def test_siglips_tokenizer_json_is_read_where_there_is_no_model(
    only: bool, sound: tuple[Path, Any], tmp_path: Path
) -> None:
    """Beside spiece.model it is passed over, whatever it is: SiglipTokenizer reads the other."""
    shutil.copytree(sound[0], tmp_path, dirs_exist_ok=True)
    made = load_source(str(tmp_path)).tokenizer_json
    (tmp_path / "tokenizer.json").write_bytes(made if only else b"{}")
    if only:
        (tmp_path / "spiece.model").unlink()
    texts = corpus()
    ours = encoded(load_source(str(tmp_path)), texts).numpy()
    np.testing.assert_array_equal(ours, tokenize(sound[0], 64)(texts))


def test_a_given_tokenizer_file_is_taken(sound: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(sound[0], tmp_path, dirs_exist_ok=True)
    model = (tmp_path / "spiece.model").rename(tmp_path / "elsewhere.model")
    assert (
        load_source(str(tmp_path), tokenizer=model).tokenizer_json
        == load_source(str(sound[0])).tokenizer_json
    )


@pytest.mark.parametrize("ending", ["", "Fast", "Pil"])
@pytest.mark.parametrize("kind", [name for name in PROCESSORS if name.endswith("Processor")])
def test_keys_left_out_take_their_image_processors_defaults(kind: str, ending: str, tmp_path: Path) -> None:
    import transformers

    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind + ending}))
    theirs = getattr(transformers, f"{kind}Pil")()
    size = theirs.size if "height" in theirs.size else {"height": 224, "width": 224}
    spec = read_preprocessing(tmp_path, (size["height"], size["width"]))
    with Image.open(pictures(tmp_path / "pictures", 1)[0]) as opened:
        picture = opened.convert("RGB")
    want = theirs(picture, return_tensors="np")["pixel_values"][0]
    levels = np.array(spec.std, np.float32)[:, None, None] * 255
    assert float((np.abs(preprocess(picture, spec) - want) * levels).max()) <= 1.01


@pytest.mark.parametrize("prefixed", [True, False])  # releases of transformers before 5 wrote the prefix
@pytest.mark.parametrize("tower", ["Vision", "Text"])
def test_halves_give_what_the_whole_gives(
    tower: str, prefixed: bool, sound: tuple[Path, Any], tmp_path: Path
) -> None:
    import transformers

    shutil.copytree(sound[0], tmp_path, dirs_exist_ok=True)
    half = getattr(transformers, f"Siglip{tower}Model").from_pretrained(sound[0])
    half.save_pretrained(tmp_path)
    prefix, weights = f"{tower.lower()}_model.", load_file(tmp_path / "model.safetensors")
    names = {name: name.removeprefix(prefix) for name in weights}
    named = {(prefix if prefixed else "") + names[name]: tensor for name, tensor in weights.items()}
    save_file(named, tmp_path / "model.safetensors")
    whole, alone = load_source(str(sound[0])), load_source(str(tmp_path))
    with torch.no_grad():
        if tower == "Vision":
            assert (alone.pooling, alone.text) == ("map/", None)
            pixels = fixed_pixels(2, 32, 32)
            assert torch.equal(alone.model.encode_image(pixels), whole.model.encode_image(pixels))
        else:
            assert (alone.pooling, alone.preprocessing) == ("/last", None)
            ids = encoded(alone, TEXTS)
            assert torch.equal(alone.model.encode_text(ids), whole.model.encode_text(ids))
    edit(tmp_path / CONFIG, architectures=["SiglipForImageClassification"])
    refused(tmp_path, f"architectures is .* expected ..Siglip{tower}Model")


def edit(path: Path, **changes: Any) -> None:
    """Change a JSON file; `a__b` is the key b of a; None takes a key out."""
    data = json.loads(path.read_text())
    for name, value in changes.items():
        place, (*outer, last) = data, name.split("__")
        for key in outer:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    path.write_text(json.dumps(data))


def reweigh(folder: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        weights.pop(name.replace("__", "."), None)
        if tensor is not None:
            weights[name.replace("__", ".")] = tensor
    save_file(weights, folder / "model.safetensors")


def end_texts(folder: Path, template: list[str]) -> None:
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    marks = [(mark, tokenizer.token_to_id(mark)) for mark in dict.fromkeys(template) if mark != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    tokenizer.save(str(path))


CONFIG, TOKENIZER, PICTURES = "config.json", "tokenizer_config.json", "preprocessor_config.json"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "SigLIP 2 of free size": (
        lambda f: edit(f / CONFIG, model_type="siglip2"),
        r"model_type is 'siglip2'.*take a SigLIP 2 of one resolution, e\.g\. hf:google/siglip2-base-patch16-224",
    ),
    "a config of free size": (
        lambda f: edit(f / CONFIG, vision_config__num_patches=256),
        "num_patches describes pictures of free size",
    ),
    "no head": (lambda f: edit(f / CONFIG, vision_config__vision_use_head=False), "vision_use_head is false"),
    "a head that is no truth value": (
        lambda f: edit(f / CONFIG, vision_config__vision_use_head="no"),
        "vision_use_head: expected bool, got 'no'",
    ),
    "widths apart": (
        lambda f: edit(f / CONFIG, text_config__projection_size=48),
        "texts become 48 numbers .* pictures 64",
    ),
    "oblong pictures": (
        lambda f: edit(f / CONFIG, vision_config__image_size=[32, 64]),
        "expected square patches of square pictures",
    ),
    "four channels": (lambda f: edit(f / CONFIG, vision_config__num_channels=4), "4 channels"),
    "another activation": (
        lambda f: edit(f / CONFIG, text_config__hidden_act="relu"),
        "hidden_act is 'relu', expected one of gelu",
    ),
    "heads that do not fit": (
        lambda f: edit(f / CONFIG, vision_config__num_attention_heads=5),
        "5 heads do not divide a width of 64",
    ),
    "another feed-forward": (
        lambda f: edit(f / CONFIG, vision_config__intermediate_size=128),
        "its config asks for",
    ),
    "another resolution": (lambda f: edit(f / CONFIG, vision_config__image_size=48), "its config asks for"),
    "a pool without its bias": (
        lambda f: reweigh(f, vision_model__head__attention__in_proj_bias=None),
        "'vision_model.head.attention.in_proj_bias' is missing",
    ),
    "a pool of another width": (
        lambda f: reweigh(f, vision_model__head__attention__in_proj_weight=torch.ones(96, 64)),
        r"in_proj_weight' has shape",
    ),
    "no bias of the scores": (lambda f: reweigh(f, logit_bias=None), "'logit_bias' is missing"),
    "a tensor too many": (
        lambda f: reweigh(f, classifier__weight=torch.ones(2, 64)),
        "'classifier.weight' has no place",
    ),
    "CLIP's tokenizer": (
        lambda f: edit(f / TOKENIZER, tokenizer_class="CLIPTokenizer"),
        "tokenizer_class is 'CLIPTokenizer', expected one of SiglipTokenizer",
    ),
    "case kept": (
        lambda f: edit(f / TOKENIZER, do_lower_case=False),
        "do_lower_case is False, but SigLIP was trained on texts in lower case",
    ),
    "no tokenizer": (lambda f: (f / "spiece.model").unlink(), "expected spiece.model or tokenizer.json"),
    "a damaged tokenizer": (
        lambda f: (f / "spiece.model").write_bytes((f / "spiece.model").read_bytes()[:999]),
        "spiece.model: not a SentencePiece model",
    ),
    "Gemma's vocabulary": (
        lambda f: (f / "spiece.model").write_bytes(trained("gemma")),
        "expected a unigram model that joins spaces",
    ),
    "more ids than rows": (
        lambda f: (
            edit(f / CONFIG, text_config__vocab_size=5000),
            reweigh(f, text_model__embeddings__token_embedding__weight=torch.ones(5000, 64)),
        ),
        "largest id is 5999, but the text tower has 5000 rows",
    ),
    "another mark": (
        lambda f: edit(f / TOKENIZER, eos_token="[SEP]"),
        r"the special token '\[SEP\]' is not in it",
    ),
    "padding before texts": (lambda f: edit(f / TOKENIZER, padding_side="left"), "padding_side is 'left'"),
    "an unknown image processor": (
        lambda f: edit(f / PICTURES, image_processor_type="Siglip2ImageProcessorFast"),
        "image_processor_type is 'Siglip2ImageProcessorFast', expected one of CLIPImageProcessor",
    ),
    "pictures padded": (
        lambda f: edit(f / PICTURES, do_pad=True),
        "do_pad is True, which edgeclip cannot do",
    ),
    "colours turned": (
        lambda f: edit(f / PICTURES, do_flip_channel_order=True),
        "do_flip_channel_order is True",
    ),
    "pictures of another size": (
        lambda f: edit(f / PICTURES, size={"height": 48, "width": 48}),
        r"makes pictures of \(48, 48\), but the image tower takes \(32, 32\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_said_in_one_line(damage: str, sound: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(sound[0], tmp_path, dirs_exist_ok=True)
    spoil, message = DAMAGE[damage]
    spoil(tmp_path)
    refused(tmp_path, message)


DAMAGE_2: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no end": (
        lambda f: end_texts(f, ["$A"]),
        r"expected texts that end with '<eos>' \(1\).*this one are \[\]",
    ),
    "a start": (lambda f: end_texts(f, ["<bos>", "$A", "<eos>"]), r"the marks of this one are \[2, 1\]"),
    "a stated start": (lambda f: edit(f / TOKENIZER, add_bos_token=True), "have nothing before them"),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        "expected tokenizer.json or tokenizer.model",
    ),
    "SigLIP's class": (
        lambda f: edit(f / TOKENIZER, tokenizer_class="SiglipTokenizer"),
        "expected a unigram tokenizer, as SigLIP has it",
    ),
    "another mark": (
        lambda f: edit(f / TOKENIZER, eos_token="</s>"),
        "the special token '</s>' is not in it",
    ),
    "another padding": (
        lambda f: edit(f / TOKENIZER, pad_token="[PAD]"),
        r"the padding token '\[PAD\]' is not in the tokenizer",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE_2)
def test_what_is_wrong_in_siglip_2_is_said_in_one_line(damage: str, second: Path, tmp_path: Path) -> None:
    shutil.copytree(second, tmp_path, dirs_exist_ok=True)
    spoil, message = DAMAGE_2[damage]
    spoil(tmp_path)
    refused(tmp_path, message)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        load_source(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
