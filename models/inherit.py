"""A smaller CLIP that starts from a larger one's weights: fewer blocks, heads, hidden units and channels, each kept whole.

One set of channels is kept everywhere in a tower (embeddings, norms, what layers read and write), one set of heads and units in each
block. A LayerNorm over fewer channels is another function, which `models/mend.py` mends on samples. An embedding of fewer
numbers is the teacher's turned onto its strongest directions, the same for both towers, so that cosines stay nearly what they were.
A plan that asks for nothing gives the teacher's own bits.
Source: Wu et al. 2023 (TinyCLIP), arXiv:2309.12314, section 3.2 (weight inheritance by hand); the scores are ours, see models/importance.py.
Shapes: W width, D embedding width, h heads of d numbers, U hidden units.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edgeclip.errors import InputError, SourceError
from edgeclip.models.clip import Clip, ImageTower, TextTower
from edgeclip.models.config import ClipConfig, MoeConfig, TransformerConfig
from edgeclip.models.importance import CHOICES, MEASURED, Importance, PairSamples, Scores, tower_scores
from edgeclip.models.learned_choice import CHANNELS, LAYERS, Parts, best, learn_choice
from edgeclip.models.mend import LEAST, BlockParts, TowerParts, mend
from edgeclip.models.source import Source

Tower = ImageTower | TextTower


@dataclass(frozen=True)
class TowerPlan:
    """Sizes of a tower. 0: as the teacher's."""

    layers: int | tuple[int, ...] = 0  # so many, evenly spread, or those of these numbers from 0
    width: int = 0
    heads: int = 0  # each keeps its own width
    mlp_width: int = 0  # of an expert, where there are some


@dataclass(frozen=True)
class StudentPlan:
    """Sizes of both towers, and what the parts that stay are chosen by."""

    image: TowerPlan = TowerPlan()
    text: TowerPlan = TowerPlan()
    embed_dim: int = 0  # 0: as the teacher's
    importance: Importance = "weights"  # "activations", "gradients" and "learned" need samples
    mend: bool = False  # fit what stays to the teacher's layers, on samples


# The end of a parameter's name -> what each of its axes counts: c channels of the stream, i numbers of the kept heads (q, k and v: 3i,
# k and v: 2i), u hidden units, p channels of what is pooled, "" anything else. The longest end that fits counts.
_AXES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("patches.weight", "patches.bias", "class_token"), ("c",)),
    **dict.fromkeys(("position", "embedding.weight"), ("", "c")),
    **{
        f"{norm}.{part}": ("c",)
        for norm in ("norm_pre", "norm1", "norm2", "norm_final", "head.norm", "head.norm_k")
        for part in ("weight", "bias")
    },
    "norm_post.weight": ("p",),
    "norm_post.bias": ("p",),
    "attention.qkv.weight": ("3i", "c"),
    "attention.qkv.bias": ("3i",),
    "attention.out.weight": ("c", "i"),
    "attention.out.bias": ("c",),
    "fc1.weight": ("u", "c"),
    "fc1.bias": ("u",),
    "fc2.weight": ("c", "u"),
    "fc2.bias": ("c",),
    "router.weight": ("", "c"),
    "projection.weight": ("", "p"),
    # of an attention pool: SigLIP's has a stream of its own, as wide as the tower's; OpenCLIP's keeps its width
    "head.probe": ("", "", "c"),
    "head.q.weight": ("i", "c"),
    "head.q.bias": ("i",),
    "head.kv.weight": ("2i", "c"),
    "head.kv.bias": ("2i",),
    "head.out.weight": ("c", "i"),
    "head.out.bias": ("c",),
    "head.k.weight": ("", "c"),
    "head.v.weight": ("", "c"),
}

_OWN_STREAM = ("head.q.", "head.out.")  # of an attention pool: OpenCLIP's never meet the tower's channels


def inherit(teacher: Source, plan: StudentPlan, samples: PairSamples | None = None) -> Source:
    """A source of the planned sizes whose every weight is one of the teacher's, or fitted. It shares no tensor with the teacher.

    Args:
        samples: pairs, for an importance that is measured and for mending.
    Raises:
        InputError: a size that the teacher does not have, or samples that are missing or too few.
        SourceError: a planned change of a tower that is not canonical, or a model that is no plain CLIP.
    """
    model: Any = teacher.model
    if type(model) is not Clip:
        raise SourceError(
            f"{teacher.spec}: only a CLIP's towers can be inherited, this is a {type(model).__name__}. Name another student."
        )
    if plan.importance not in CHOICES:
        raise InputError(
            f"importance {plan.importance!r}: expected one of {', '.join(CHOICES)}. weights needs no pairs."
        )
    wants = "importance learned" if plan.importance == "learned" else "mend" if plan.mend else ""
    if wants and (samples is None or len(samples.pixels) < LEAST):
        got = 0 if samples is None else len(samples.pixels)
        raise InputError(
            f"{wants}: expected {LEAST} pairs or more to fit to, got {got}. Some tens are better."
        )
    config: ClipConfig = model.config
    turn = _turn(teacher, plan.embed_dim)
    cuts: dict[str, Cut] = {}
    for name in ("image", "text"):
        sizes: TowerPlan = getattr(plan, name)
        tower = getattr(model, name)
        if sizes == TowerPlan() and turn is None:
            continue
        if type(tower) not in (ImageTower, TextTower):
            what = "not there" if tower is None else f"a {type(tower).__name__}"
            raise SourceError(
                f"{teacher.spec}: the {name} tower is {what}, whose sizes cannot be changed. Leave {name} and embed_dim out."
            )
        cuts[name] = planned(tower, sizes, turn is not None, f"{name}.")
        config = replace(config, **{name: cuts[name].config})
    importance = _importance(teacher, plan, cuts, samples)
    if plan.importance == "learned" and samples is not None:
        for name, inputs in (("image", samples.pixels), ("text", samples.input_ids)):
            if name in cuts:
                tower, sizes = getattr(model, name), getattr(plan, name)
                importance[name], cuts[name] = _learned(tower, sizes, cuts[name], importance[name], inputs)
                config = replace(config, **{name: cuts[name].config})
    config = replace(config, embed_dim=plan.embed_dim or config.embed_dim)
    with torch.device("meta"):
        made = Clip(config)
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    kept: dict[str, _Kept] = {}
    for name, cut in cuts.items():
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        kept[name] = _Kept(getattr(model, name), cut, importance[name])
        own = _cut_state(getattr(model, name), kept[name], turn)
        state |= {f"{name}.{key}": value for key, value in own.items()}
    made.load_state_dict(state, assign=True)
    made.requires_grad_(False).eval()
    if plan.mend and samples is not None:
        for name, inputs in (("image", samples.pixels), ("text", samples.input_ids)):
            if name in cuts and (turn is not None or cuts[name].config != getattr(model.config, name)):
                mend(getattr(model, name), getattr(made, name), kept[name].parts(turn), inputs)
    told = [teacher.digest, config.to_json(), asdict(plan)]
    if samples is not None and (plan.mend or plan.importance in MEASURED):
        told.append(samples.digest())
    return replace(
        teacher,
        model=made,
        embedding_dim=config.embed_dim,
        digest=hashlib.sha256(repr(told).encode()).hexdigest(),
    )


@dataclass(frozen=True)
class Cut:
    """What a tower becomes."""

    config: Any  # of its own class
    layers: tuple[int, ...]  # of the teacher's blocks
    width: int
    heads: int
    head_width: int
    mlp_width: int


def planned(tower: Tower, plan: TowerPlan, projected: bool, where: str) -> Cut:
    """The sizes of one tower, checked.

    Args:
        projected: the embedding changes, so that a tower without a projection gets one.
        where: stands before a size's name in messages, e.g. "image.".
    Raises:
        InputError: a size of 0 or less, above the teacher's, or a block that it does not have.
    """
    config: Any = tower.config
    blocks: TransformerConfig = config.blocks
    for name in ("width", "heads", "mlp_width"):
        _check_size(f"{where}{name}", getattr(plan, name), getattr(blocks, name))
    layers = _layers(plan.layers, blocks.layers, f"{where}layers")
    width, heads = plan.width or blocks.width, plan.heads or blocks.heads
    head_width = blocks.head_width or blocks.width // blocks.heads
    moe = blocks.moe
    if moe is not None:
        counts = tuple(moe.experts[number] for number in layers)
        moe = MoeConfig(counts, moe.top_k) if any(counts) else None
    made = replace(
        blocks,
        width=width,
        layers=len(layers),
        heads=heads,
        mlp_width=plan.mlp_width or blocks.mlp_width,
        # said only where it does not follow from the others
        head_width=0 if heads * head_width == width else head_width,
        moe=moe,
    )
    changes: dict[str, Any] = {"blocks": made}
    own_width = bool(getattr(config, "pool_width", 0))
    if not config.projection and (projected or (width != blocks.width and not own_width)):
        changes["projection"] = True
    return Cut(replace(config, **changes), layers, width, heads, head_width, made.mlp_width)


def spread(count: int, total: int) -> tuple[int, ...]:
    """`count` numbers of 0 to total - 1, evenly spread, the first and the last among them; one alone is the first."""
    return tuple(round(i * (total - 1) / max(1, count - 1)) for i in range(count))


def _layers(wanted: int | tuple[int, ...], total: int, where: str) -> tuple[int, ...]:
    if isinstance(wanted, int):
        _check_size(where, wanted, total)
        return spread(wanted or total, total)
    if not wanted or list(wanted) != sorted({*wanted} & {*range(total)}):
        raise InputError(
            f"{where}: expected rising numbers of 0 to {total - 1}, got {', '.join(map(str, wanted)) or 'none'}."
        )
    return wanted


def _check_size(where: str, wanted: int, most: int) -> None:
    if not 0 <= wanted <= most:
        raise InputError(f"{where}: expected 1 to {most}, what the teacher has, got {wanted}.")


def _importance(
    teacher: Source, plan: StudentPlan, cuts: dict[str, Cut], samples: PairSamples | None
) -> dict[str, Parts]:
    """Of each tower's parts. None are worked out where every channel, head and unit stays."""
    sizes: list[TowerPlan] = [getattr(plan, name) for name in cuts]
    if not any(size.width or size.heads or size.mlp_width for size in sizes):
        return {name: {} for name in cuts}
    kind = "gradients" if plan.importance == "learned" else plan.importance
    scores = tower_scores(teacher.model, kind, samples)
    return {
        name: _parts(getattr(teacher.model, name), scores[name], cut.layers) for name, cut in cuts.items()
    }


def _parts(tower: Tower, scores: Scores, layers: tuple[int, ...]) -> Parts:
    """Scores of inputs of layers as those of the parts that they are."""
    config: Any = tower.config
    found = {}
    for name, score in scores.items():
        if name.endswith("fc2"):
            found[name] = score
        elif name.endswith(".out") and not (name.startswith("head.") and _pooled_apart(config)):
            found[name] = score.view(config.blocks.heads, -1).sum(dim=1)
    # a channel by what the stream's readers in the blocks that stay make of it, every reader counting alike
    readers = {"head.kv", "head.k", "head.v"} | ({"projection"} if not _pooled_apart(config) else set())
    for name, score in scores.items():
        block = re.match(r"blocks\.(\d+)\.", name)
        inside = name.endswith(("attention.qkv", "fc1")) and block and int(block[1]) in layers
        if inside or name in readers:
            share = score.double() / score.double().sum().clamp_min(1e-30)
            found[CHANNELS] = found.get(CHANNELS, 0) + share
    return found


def _pooled_apart(config: Any) -> bool:
    """Whether a tower's pool has a width of its own, so that behind it nothing is the tower's stream."""
    return bool(getattr(config, "pool_width", 0))


def _learned(
    tower: Tower, sizes: TowerPlan, cut: Cut, importance: Parts, inputs: Tensor
) -> tuple[Parts, Cut]:
    """What stays by training masks, and the tower's sizes with the blocks that do."""
    begun, total = dict(importance), len(tower.blocks)
    counts = {name: cut.mlp_width if name.endswith("fc2") else cut.heads for name in begun}
    if CHANNELS in begun:
        counts[CHANNELS] = cut.width
    free = isinstance(sizes.layers, int) and len(cut.layers) < total
    if free:
        begun[LAYERS] = torch.zeros(total).index_fill(0, torch.tensor(cut.layers), 1.0)
        counts[LAYERS] = len(cut.layers)
    found = learn_choice(tower, begun, counts, inputs, layers=() if free else cut.layers)
    if free:
        layers = tuple(best(found.pop(LAYERS), len(cut.layers)).tolist())
        cut = planned(tower, replace(sizes, layers=layers), cut.config.projection, "")
    return found, cut


def _cut_state(tower: Tower, kept: _Kept, turn: Tensor | None) -> dict[str, Tensor]:
    """The new tower's parameters by name."""
    found = {}
    for name, value in tower.state_dict().items():
        new = kept.renamed(name)
        if new is not None:
            found[new] = kept.part(name, value)
    if tower.projection is None and kept.cut.config.projection:
        pooled = getattr(tower.config, "pool_width", 0) or tower.config.blocks.width
        eye = torch.eye(pooled, dtype=next(iter(found.values())).dtype)
        found["projection.weight"] = kept.part("projection.weight", eye)
    if turn is not None:
        for name in ("projection.weight", "projection.bias"):
            if name in found:
                found[name] = (turn @ found[name].double()).to(found[name].dtype)
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


class _Kept:
    """Which channels, heads and units of a tower stay."""

    def __init__(self, tower: Tower, cut: Cut, importance: Parts) -> None:
        self.cut, self.importance = cut, importance
        self.numbers = {old: new for new, old in enumerate(cut.layers)}
        config: Any = tower.config
        self.head_width = cut.head_width
        self.sizes = config.blocks
        self.queries_apart = _pooled_apart(config)
        # whether norm_post and the projection meet the tower's channels, or those of such a pool
        self.norms_stream = not self.queries_apart or not config.norm_after_pool
        self.projects_stream = not self.queries_apart
        self.channels = self._top(CHANNELS, cut.width, config.blocks.width)

    def renamed(self, name: str) -> str | None:
        """A parameter's name in the student; None: its block goes."""
        found = re.fullmatch(r"blocks\.(\d+)\.(.*)", name)
        if found is None:
            return name
        number = self.numbers.get(int(found[1]))
        return None if number is None else f"blocks.{number}.{found[2]}"

    def part(self, name: str, value: Tensor) -> Tensor:
        """What stays of one parameter."""
        if name.startswith(_OWN_STREAM) and self.queries_apart:
            return value
        ends = [end for end in _AXES if name == end or name.endswith(f".{end}")]
        for axis, kind in enumerate(_AXES[max(ends, key=len)] if ends else ()):
            index = self._index(kind, name)
            if index is not None and len(index) < value.shape[axis]:
                value = value.index_select(axis, index)
        return value

    def parts(self, turn: Tensor | None) -> TowerParts:
        """What stays, for mending. `turn`: of the embedding."""
        layers = self.cut.layers
        blocks = tuple(
            BlockParts(
                number,
                self._inner(f"blocks.{number}.attention"),
                self._top(f"blocks.{number}.mlp.fc2", self.cut.mlp_width, self.sizes.mlp_width),
            )
            for number in layers
        )
        return TowerParts(self.channels, self.channels if self.norms_stream else None, blocks, turn)

    def _index(self, kind: str, name: str) -> Tensor | None:
        if kind == "p":
            pooled = self.projects_stream if name.startswith("projection") else self.norms_stream
            return self.channels if pooled else None
        if kind == "c":
            return self.channels
        place = name.rpartition(".")[0].rpartition(".")[0]  # of fc1 its Mlp, of qkv its Attention
        if kind == "u":
            return self._top(f"{place}.fc2", self.cut.mlp_width, self.sizes.mlp_width)
        if kind.endswith("i"):
            inner = self._inner(place)
            copies = int(kind[:-1] or 1)
            step = self.sizes.heads * self.head_width
            return torch.cat([inner + copy * step for copy in range(copies)])
        return None

    def _inner(self, place: str) -> Tensor:
        """Numbers of the kept heads' own channels."""
        heads = self._top(f"{place}.out", self.cut.heads, self.sizes.heads)
        return (heads[:, None] * self.head_width + torch.arange(self.head_width)).flatten()

    def _top(self, place: str, count: int, total: int) -> Tensor:
        """(count,) rising numbers of the best, or evenly spread ones where there is no score."""
        if count == total:
            return torch.arange(total)
        score = self.importance.get(place)
        return torch.tensor(spread(count, total)) if score is None else best(score, count)


def _turn(teacher: Source, embed_dim: int) -> Tensor | None:
    """(embed_dim, D) float64, orthonormal rows: the directions that both towers' embeddings use most, by their weights."""
    width = teacher.embedding_dim
    _check_size("embed_dim", embed_dim, width)
    if embed_dim in (0, width):
        return None
    gram = torch.zeros(width, width, dtype=torch.float64)
    for tower in (teacher.model.image, teacher.model.text):
        if not isinstance(tower, (ImageTower, TextTower)) or tower.projection is None:
            continue
        last = tower.norm_post if isinstance(tower, ImageTower) else tower.norm_final
        weight = tower.projection.weight.detach().double()
        if last is not None and len(last.weight) == weight.shape[1]:
            # what a standardised stream becomes, and its mean
            mean = weight @ last.bias.detach().double()
            if tower.projection.bias is not None:
                mean += tower.projection.bias.detach().double()
            weight = torch.cat([weight * last.weight.detach().double(), mean[:, None]], dim=1)
        gram += weight @ weight.T / weight.square().sum()
    strongest: Tensor = torch.linalg.eigh(gram).eigenvectors[:, -embed_dim:].T.flip(0)
    return strongest
