"""Fit codecs to a model's own vectors, and measure on vectors held out what each of them loses.

Every fourth vector is held out. What there is to choose (whether a rotation is worth its place in the file) is chosen by the
recall on those; the codecs that are kept are then fitted again to all vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeclip.errors import InputError
from edgeclip.runtime.codecs import Codecs
from edgeclip.runtime.codecs.kinds import Array, Codec, Kind, Vectors, check_vectors
from edgeclip.runtime.codecs.nearest import best, products

# With fewer, neither a range nor a recall means anything. Texts are rarely stored, they ask: all they must give is a mean.
MIN_VECTORS: Mapping[Kind, int] = {"image": 64, "text": 32}
GAIN = 0.005  # of recall that a rotation must bring, for a file that grows by 4 d D bytes
_HELD = 4  # every fourth
_DOCUMENTS, _QUERIES = 20_000, 500  # held out, at most
# Eight bits lose least of a normal distribution when they end at about 4 of its deviations; 64 vectors show but 2.4 of them.
_DEVIATIONS = 4.0
_TURNS, _TURNED = (
    20,
    4096,
)  # steps of the rotation's fit, it moves no more after 15; and rows that it is fitted to


def fit_codecs(vectors: Mapping[Kind, Array], model_id: str, widths: Sequence[int] | None = None) -> Codecs:
    """Codecs for the vectors of one model, with what they lose in `measured`. The same vectors give the same codecs.

    Args:
        vectors: of "image", "text" or both: (N, D) float unit rows of one width D, at least MIN_VECTORS of theirs.
        widths: of the truncated codecs; None: a half, a quarter and an eighth of D, from 8 on.
    Raises:
        InputError: too few vectors, NaN, rows that are not of unit length, or a width that D does not have.
    """
    rows = _checked(vectors)
    dim = next(iter(rows.values())).shape[1]
    default = [width for width in (dim // 2, dim // 4, dim // 8) if width >= 8]
    widths = default if widths is None else list(widths)
    if wrong := [width for width in widths if not 0 < width < dim]:
        raise InputError(
            f"codecs: expected widths from 1 to {dim - 1}, below the embedding's {dim}, got {wrong[0]}."
        )
    fitted = {kind: np.delete(found, np.s_[::_HELD], axis=0) for kind, found in rows.items()}
    held: dict[Kind, Array] = {kind: found[::_HELD][:_DOCUMENTS] for kind, found in rows.items()}
    plain = _fit(fitted, model_id, dict.fromkeys(widths, False), False)
    turned = _fit(fitted, model_id, dict.fromkeys(widths, True), True)
    chosen = {name: _recall(turned, name, held) > _recall(plain, name, held) + GAIN for name in plain.names}
    cut = {width: chosen[f"d{width}"] for width in widths}
    measured = measure(_fit(fitted, model_id, cut, chosen["bits"]), held)
    final = _fit(rows, model_id, cut, chosen["bits"])
    facts = {"fitted_to": {kind: len(found) for kind, found in rows.items()}, **measured}
    return Codecs(model_id, dim, cut, final.tensors, facts)


def _checked(vectors: Mapping[Kind, Array]) -> dict[Kind, Vectors]:
    if not vectors:
        raise InputError("codecs: expected vectors of pictures or texts to fit to, got none.")
    dim = int(np.shape(next(iter(vectors.values())))[-1])
    rows: dict[Kind, Vectors] = {}
    for kind, found in sorted(vectors.items()):  # pictures first: they are what is stored
        rows[kind] = check_vectors(found, dim, f"{kind} vectors")
        if len(found) < (least := MIN_VECTORS[kind]):
            raise InputError(
                f"{kind} vectors: expected at least {least} to fit codecs to, got {len(found)}. Pass more."
            )
    return rows


def measure(codecs: Codecs, vectors: Mapping[Kind, Array]) -> dict[str, Any]:
    """Recall of each codec against exact search in float32, among vectors that it was not fitted to.

    Args:
        vectors: "image" and "text" unit rows; pictures (or texts, where there are none) are searched, by each kind.
    Returns:
        {"k", "documents", "rows": [{"codec", "rescore", "bytes", "recall": {kind of the queries: 0-1}}]}, JSON-ready.
    """
    stored = codecs.kinds[0]
    ways = [(name, "") for name in codecs.names] + [("bits", "int8")]
    return {
        "k": _k(len(vectors[stored])),
        "documents": len(vectors[stored]),
        "rows": [
            {
                "codec": name,
                "rescore": finer,
                "bytes": codecs[name].nbytes + (codecs[finer].nbytes if finer else 0),
                "recall": {
                    kind: round(recall(codecs[name], vectors[stored], rows, kind, codecs[finer] if finer else None,
                                       same=kind == stored), 4)
                    for kind, rows in vectors.items()
                },
            }
            for name, finer in ways
        ],
    }  # fmt: skip


def recall(
    codec: Codec, documents: Array, queries: Array, asking: Kind, finer: Codec | None = None, *, same: bool
) -> float:
    """Share of the k nearest documents, by float32 cosine, that a search among codes finds.

    Args:
        documents: (N, D), stored as codes; k is 10, or a twentieth of N where that is less.
        queries: (Q, D), the first few hundred of which ask.
        asking: what the queries are.
        finer: ranks the candidates of `codec` again.
        same: the queries are the first of the documents, which must not find themselves.
    """
    k, queries = _k(len(documents)), queries[:_QUERIES]
    exact = products(queries, documents)
    if same:
        np.fill_diagonal(exact, -np.inf)
    wanted, _ = best(exact, k)
    rescore = None if finer is None else (finer, finer.encode(documents))
    found, _ = codec.search(queries, k + same, codec.encode(documents), asking=asking, rescore=rescore)
    own = np.arange(len(queries)) if same else np.full(len(queries), -1)
    hits = [len(set(want) & set(got[got != i][:k])) for want, got, i in zip(wanted, found, own, strict=True)]
    return float(np.mean(hits)) / k


def _k(documents: int) -> int:
    return max(1, min(10, documents // 20))


def _recall(codecs: Codecs, name: str, vectors: Mapping[Kind, Array]) -> float:
    stored = codecs.kinds[0]
    return float(np.mean([recall(codecs[name], vectors[stored], rows, kind, same=kind == stored)
                          for kind, rows in vectors.items()]))  # fmt: skip


def _fit(rows: Mapping[Kind, Vectors], model_id: str, cut: Mapping[int, bool], turn_bits: bool) -> Codecs:
    tensors: dict[str, Vectors] = {}
    stored = next(iter(rows.values()))
    dim = stored.shape[1]
    if any(cut.values()):
        width = max(width for width, rotated in cut.items() if rotated)
        tensors["rotation"] = _principal(rows)[:width].astype(np.float32)
    turn = np.eye(dim)
    if turn_bits:
        turn = _turn(stored - stored.mean(axis=0, dtype=np.float64))
        tensors["bits.rotation"] = turn.astype(np.float32)
    for kind, found in rows.items():
        mean = found.mean(axis=0, dtype=np.float64)
        centred = found - mean
        reach = np.maximum(np.abs(centred).max(axis=0), _DEVIATIONS * centred.std(axis=0))
        parts = mean, np.maximum(reach, 1e-9) / 127, np.abs(centred @ turn.T).mean(axis=0)
        tensors |= {
            f"{kind}.{name}": np.asarray(value, np.float32)
            for name, value in zip(("mean", "scale", "spread"), parts, strict=True)
        }
    return Codecs(model_id, dim, dict(cut), tensors)


def _principal(rows: Mapping[Kind, Vectors]) -> Array:
    """(D, D) directions, those that carry most of a cosine first. Not centred: the mean is part of every cosine.

    Pictures and texts weigh the same, however many there are: a direction in which either does not vary separates nothing.
    """
    moments = sum(found.T.astype(np.float64) @ found / len(found) for found in rows.values())
    directions: Array = np.linalg.eigh(moments)[1][:, ::-1].T
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])
    directions *= signs[:, None]  # eigenvectors have no sign of their own
    return directions


def _turn(centred: Array) -> Array:
    """(D, D) orthogonal T after which the signs of centred @ T.T lie nearest to the values themselves.

    Source: Gong and Lazebnik 2011, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes".
    """
    centred = centred[:: -(-len(centred) // _TURNED)].astype(np.float32)
    turn = np.eye(centred.shape[1], dtype=np.float32)
    for _ in range(_TURNS):
        left, _, right = np.linalg.svd(np.sign(centred @ turn.T).T @ centred)
        turn = left @ right
    return turn
