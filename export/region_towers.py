"""Traceable region encoders: pixels -> tokens, tokens and boxes -> embeddings, tokens and texts -> embeddings and boxes. See form.py.

What differs from the source's own forward, none of which changes the function: all that clip_towers.py changes; a value path is
one linear layer, out times value; and so is each side of the prompter's single head. With one head a score is (W_k' W_q p) . x, so that
neither keys nor values of the tokens are ever made: a prompt costs two products of the width squared instead of the picture's tokens
through the layer, and what the key's bias adds is the same for every token and drops out of the softmax. What patches say of their places is a constant.
Shapes: N pictures, T tokens, R boxes, P texts, W token width, D embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.bundle import Port
from edgeclip.export.clip_towers import TracedImage, expected
from edgeclip.export.experts import traced_feed_forward
from edgeclip.export.form import EXAMPLE_BATCH, Form, unit
from edgeclip.export.traced import Linear
from edgeclip.models.clip import Attention, Block, ImageTower
from edgeclip.models.prompter import AskBoxes, AskTexts, ImageTokens, sinusoids
from edgeclip.models.regions import DenseMap, RoiPool, roi_weights
from edgeclip.models.source import Source

_EXAMPLE_ROWS = 3  # boxes or texts of a picture


def dense_map(source: Source) -> Form:
    """The form of models/regions.py's DenseMap: T patches, W = D."""
    dense = source.model.tokens
    assert isinstance(dense, DenseMap)
    module, config = _Map(dense).eval(), dense.tower.config
    patches = config.tokens - int(config.class_token)
    blocks = len(module.image.blocks)
    return _pixels(source, module, ("N", patches, source.embedding_dim), expected(module, blocks))


def image_tokens(source: Source) -> Form:
    """The form of models/prompter.py's ImageTokens."""
    tokens = source.model.tokens
    assert isinstance(tokens, ImageTokens)
    module, config = _Tokens(tokens).eval(), tokens.tower.config
    counts = expected(module, config.blocks.layers)
    return _pixels(source, module, ("N", config.tokens, config.blocks.width), counts)


def roi_pool(source: Source) -> Form:
    """The form of models/regions.py's RoiPool."""
    pool = source.model.regions
    assert isinstance(pool, RoiPool)
    rows, columns = pool.grid
    tokens, boxes = _port("tokens", "N", rows * columns, source.embedding_dim), _port("boxes", "N", "R", 4)
    return _asking(_Pool((rows, columns)), (tokens, boxes), _embeddings(source, "R"), {"linears": 0})


def ask_boxes(source: Source) -> Form:
    """The form of models/prompter.py's AskBoxes."""
    asking = source.model.regions
    assert isinstance(asking, AskBoxes)
    module = _AskBoxes(asking).eval()
    inputs = (_prompter_tokens(source), _port("boxes", "N", "R", 4))
    return _asking(module, inputs, _embeddings(source, "R"), _counts(module))


def ask_texts(source: Source) -> Form:
    """The form of models/prompter.py's AskTexts."""
    asking = source.model.grounding
    assert isinstance(asking, AskTexts)
    module = _AskTexts(asking).eval()
    inputs = (_prompter_tokens(source), _port("prompt_embeddings", "N", "P", source.embedding_dim))
    outputs = (*_embeddings(source, "P"), _port("boxes", "N", "P", 4))
    return _asking(module, inputs, outputs, _counts(module))


class _Map(nn.Module):
    def __init__(self, dense: DenseMap) -> None:
        super().__init__()
        self.image = TracedImage(dense.tower)
        self.last: _ValueBlock | None = None
        if dense.last_block == "value":
            last = dense.tower.blocks[-1]
            assert isinstance(last, Block)
            self.image.blocks, self.last = self.image.blocks[:-1], _ValueBlock(last)

    def forward(self, pixels: Tensor) -> Tensor:
        image = self.image
        x = image.tokens(pixels)[:, int(image.config.class_token) :]
        if self.last is not None:
            x = self.last(x)
        if image.norm_post is not None:
            x = image.norm_post(x)
        return unit(x if image.projection is None else image.projection(x))


class _ValueBlock(nn.Module):
    """The last block where every token sees itself alone: the class token is not needed for it."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.value, self.mlp = Linear(_value_path(block.attention)), traced_feed_forward(block.mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.value(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class _Tokens(nn.Module):
    def __init__(self, tokens: ImageTokens) -> None:
        super().__init__()
        self.image = TracedImage(tokens.tower)
        self.image.norm_post = self.image.head = self.image.projection = (
            None  # not counted: they stand behind
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.image.tokens(pixels)


class _Pool(nn.Module):
    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, tokens: Tensor, boxes: Tensor) -> Tensor:
        return unit(roi_weights(boxes, self.grid) @ tokens)


class _Ask(nn.Module):
    places: Tensor | None

    def __init__(self, asking: AskBoxes | AskTexts, prompt: nn.Linear) -> None:
        super().__init__()
        prompter = asking.prompter
        block = prompter.block
        self.frequencies = prompter.frequencies
        self.prompt = Linear(prompt)
        self.norm1, self.norm2, self.norm = block.norm1, block.norm2, prompter.norm
        self.query, self.value = Linear(_query_path(block.attention)), Linear(_value_path(block.attention))
        self.mlp, self.projection = traced_feed_forward(block.mlp), Linear(prompter.projection)
        with torch.no_grad():
            self.register_buffer("places", prompter.places(asking.image))

    def ask(self, tokens: Tensor, given: Tensor) -> Tensor:
        """(N, T, W) and what makes (N, R, W) prompts -> (N, R, D) unit rows."""
        prompts = self.prompt(given)
        own, x = self.norm1(prompts), self.norm1(tokens)
        x = x if self.places is None else x + self.places
        query = self.query(own)
        scores = torch.cat([query @ x.transpose(1, 2), (query * own).sum(-1, keepdim=True)], dim=-1)
        shares = torch.softmax(scores, dim=-1)
        mixed = shares[..., :-1] @ x + shares[..., -1:] * own
        y = prompts + self.value(mixed)
        y = y + self.mlp(self.norm2(y))
        return unit(self.projection(self.norm(y)))


class _AskBoxes(_Ask):
    def __init__(self, asking: AskBoxes) -> None:
        super().__init__(asking, asking.prompter.box)

    def forward(self, tokens: Tensor, boxes: Tensor) -> Tensor:
        return self.ask(tokens, sinusoids(boxes, self.frequencies))


class _AskTexts(_Ask):
    def __init__(self, asking: AskTexts) -> None:
        prompter = asking.prompter
        super().__init__(asking, prompter.text)
        self.ground1, self.ground2 = Linear(prompter.ground1), Linear(prompter.ground2)

    def forward(self, tokens: Tensor, prompt_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        found = self.ask(tokens, prompt_embeddings)
        centre, size = torch.sigmoid(self.ground2(F.gelu(self.ground1(found))).float()).chunk(2, dim=-1)
        return found, torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def _value_path(attention: Attention) -> nn.Linear:
    """out(value(x)) as one layer, multiplied in float64."""
    width, qkv, out = attention.out.in_features, attention.qkv, attention.out
    outwards = out.weight.double()
    return _linear(
        outwards @ qkv.weight[2 * width :].double(),
        outwards @ qkv.bias[2 * width :].double() + out.bias.double(),
    )


def _query_path(attention: Attention) -> nn.Linear:
    """What a token's input is multiplied with to be scored by a prompt: key' (query(p)), with one head's scale."""
    width, qkv = attention.out.in_features, attention.qkv
    keys = qkv.weight[width : 2 * width].double().T * width**-0.5
    return _linear(keys @ qkv.weight[:width].double(), keys @ qkv.bias[:width].double())


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight, made.bias = nn.Parameter(weight.detach().float()), nn.Parameter(bias.detach().float())
    return made


def _counts(module: nn.Module) -> dict[str, int]:
    found = expected(module, 0)
    # the prompts go through the first norm as the tokens do
    return {"LayerNormalization": found["LayerNormalization"] + 1, "linears": found["linears"], "Softmax": 1}


def _pixels(source: Source, module: nn.Module, shape: tuple[str | int, ...], counts: dict[str, int]) -> Form:
    assert source.preprocessing is not None
    size = source.preprocessing.size
    example = torch.zeros(EXAMPLE_BATCH, 3, *size)
    return Form(module, (example,), (_port("pixels", "N", 3, *size),), (_port("tokens", *shape),), counts)


def _asking(
    module: nn.Module, inputs: tuple[Port, ...], outputs: tuple[Port, ...], counts: dict[str, int]
) -> Form:
    sizes = {"N": EXAMPLE_BATCH, "R": _EXAMPLE_ROWS, "P": _EXAMPLE_ROWS}
    shapes = [[size if isinstance(size, int) else sizes[size] for size in port.shape] for port in inputs]
    return Form(module, tuple(torch.zeros(shape) for shape in shapes), inputs, outputs, counts)


def _prompter_tokens(source: Source) -> Port:
    image = source.model.image
    assert isinstance(image, ImageTower)
    config = image.config
    return _port("tokens", "N", config.tokens, config.blocks.width)


def _embeddings(source: Source, rows: str) -> tuple[Port]:
    return (_port("embeddings", "N", rows, source.embedding_dim),)


def _port(name: str, *shape: str | int) -> Port:
    return Port(name, "float32", shape)
