"""What the onnxruntime engines share: importing it, opening a session, and reading back what really runs."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeclip.bundle.manifest import Variant
from edgeclip.errors import EngineError, MissingExtraError
from edgeclip.runtime.engines.seam import UNCOUNTED, EngineOptions

log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
# What is done to rows of pictures and texts. The arithmetic on shapes, which onnxruntime keeps on the CPU by choice, needs none of these.
COMPUTES = {
    "Attention", "Conv", "DequantizeLinear", "Erf", "Gelu", "Gemm", "LayerNormalization", "MatMul", "MatMulInteger",
    "QLinearConv", "QLinearMatMul", "QuantizeLinear", "Sigmoid", "Softmax", "Tanh", "Transpose",
}  # fmt: skip


def load_onnxruntime(extra: str) -> Any:
    """The module. Raises MissingExtraError with the command that installs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            f"onnxruntime is not installed ({error}). Run: pip install 'edgeclip[{extra}]'"
        ) from error
    return onnxruntime


def open_session(
    path: Path,
    variant: Variant,
    options: EngineOptions,
    provider: str,
    provider_options: Mapping[str, str],
    threads: int,
    *,
    install: str,
    device: Any = None,
    whole: bool = False,
) -> Any:
    """An InferenceSession whose first provider is the one that was asked for.

    Args:
        provider: onnxruntime's name of it.
        threads: of one operator on the CPU.
        install: the extra that brings this provider.
        device: of a provider that is a plug-in, what it was found on; None: the provider is built in.
        whole: the provider must take the whole graph, as one piece.
    Raises:
        EngineError: too old an onnxruntime, a graph that it cannot open, a graph that is not what the manifest says, or
            another provider than asked for (unless `options.allow_fallback`), even for one operator of a `whole` graph.
        MissingExtraError: onnxruntime is not installed.
    """
    onnxruntime = load_onnxruntime(install)
    wanted = variant.requires.get("onnxruntime", "0")
    if version_of(onnxruntime.__version__) < version_of(wanted):
        raise EngineError(
            f"{variant.id}: needs onnxruntime {wanted}, this is {onnxruntime.__version__}. Run: pip install -U onnxruntime"
        )
    settings = session_options(onnxruntime, options, threads)
    if whole:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if provider != CPU:
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    own = {**provider_options, **options.provider_options}
    if device is not None:
        settings.add_provider_for_devices([device], own)
    try:
        # without `enable_fallback=0` it prints on stdout, and opens the graph on the CPU
        session = onnxruntime.InferenceSession(
            str(path),
            settings,
            providers=None if device is not None else [(provider, own)],
            enable_fallback=0,
        )
    except Exception as error:  # onnxruntime's errors have no common base
        raise EngineError(f"{path}: onnxruntime cannot open it ({first_line(error)}).") from error
    _check_provider(session, variant, provider, options)
    if whole:
        check_whole(assigned(session), variant, provider)
    elif provider != CPU and session.get_providers()[0] == provider:
        tell_of_strays(session, variant, provider)
    _check_ports(session, variant, path)
    return session


def assigned(session: Any) -> list[tuple[str, int]] | None:
    """(provider, operators) of each piece into which onnxruntime cut the graph; None: it is older than 1.24 and does not tell.

    A provider that compiles, as TensorRT's do, has one piece for each engine; the others have one for each operator.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    return [(piece.ep_name, len(piece.get_nodes())) for piece in session.get_provider_graph_assignment_info()]


def check_whole(pieces: Sequence[tuple[str, int]] | None, variant: Variant, provider: str) -> None:
    """Raise EngineError unless the provider got the whole graph in one piece: each cut costs two copies and a wait."""
    if pieces is None or [name for name, _ in pieces] == [provider]:
        return
    every, own = (
        sum(nodes for name, nodes in pieces if name in names)
        for names in ({n for n, _ in pieces}, {provider})
    )
    raise EngineError(
        f"{variant.id}: {provider} takes {own} of {every} operators, in {sum(name == provider for name, _ in pieces)} pieces; "
        "want all in one. Use another variant, or another engine."
    )


def tell_of_strays(session: Any, variant: Variant, provider: str) -> None:
    """Warn where onnxruntime computes on the CPU what it was to compute on a GPU: each such operator costs copies and waits.

    onnxruntime-gpu 1.24 has no CUDA kernel of the Attention operator, and says nothing. Source: microsoft/onnxruntime#28025.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return  # before 1.24
    pieces = session.get_provider_graph_assignment_info()
    strays = Counter(
        node.op_type
        for piece in pieces
        if piece.ep_name != provider
        for node in piece.get_nodes()
        if node.op_type in COMPUTES
    )
    if strays:
        log.warning(
            "%s: the CPU runs %s, for which this onnxruntime has no kernel in %s. Use a newer onnxruntime, or another variant",
            variant.id, ", ".join(f"{count} {kind}" for kind, count in strays.most_common()), provider, extra=UNCOUNTED,
        )  # fmt: skip


def still_open(session: Any, variant: Variant) -> Any:
    """The session. Raises EngineError where another thread closed it meanwhile."""
    if session is None:
        raise EngineError(
            f"{variant.id}: was closed while it was in use. Close a model when its calls have ended."
        )
    return session


def first_line(error: Exception) -> str:
    """The message without the traceback that onnxruntime appends, and without the place in its source that it may begin with."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^/\S+\.(cc|h|cpp):\d+ [^)]*\) ", "", line)


def session_options(onnxruntime: Any, options: EngineOptions, threads: int) -> Any:
    """SessionOptions as all these engines have them."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1  # the towers are chains: nothing runs side by side
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.enable_cpu_mem_arena = options.arena
    settings.enable_mem_pattern = options.arena
    settings.log_severity_level = 3  # errors only: warnings would go to the host program's stderr
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    # Spinning pays between the operators of one run; beyond it, it takes cores from decoding the next picture.
    settings.add_session_config_entry("session.intra_op.spin_duration_us", "200")
    settings.add_session_config_entry("session.disable_prepacking", "0" if options.prepacking else "1")
    for key, value in options.session_options.items():
        settings.add_session_config_entry(key, value)
    return settings


def _check_provider(session: Any, variant: Variant, provider: str, options: EngineOptions) -> None:
    used = session.get_providers()[0]
    if used == provider:
        return
    if not options.allow_fallback:
        raise EngineError(
            f"{variant.id}: asked for {provider}, onnxruntime fell back to {used}. See `edgeclip doctor` for what is missing, "
            "or pass allow_fallback=True to accept it."
        )
    log.warning("%s: runs on %s instead of %s", variant.id, used, provider)


def _check_ports(session: Any, variant: Variant, path: Path) -> None:
    """The buffers are sized by the manifest, so the graph must agree with it before a byte is written."""
    for kind, ports, found in (
        ("input", variant.inputs, session.get_inputs()),
        ("output", variant.outputs, session.get_outputs()),
    ):
        shapes = {node.name: (_DTYPES.get(node.type, node.type), node.shape) for node in found}
        for port in ports:
            dtype, shape = shapes.get(port.name, (None, []))
            # a symbolic size must be one in the graph too: an export that baked its batch runs at that batch only
            same = len(shape) == len(port.shape) and all(
                size == wanted if isinstance(wanted, int) else not isinstance(size, int)
                for size, wanted in zip(shape, port.shape, strict=True)
            )
            if dtype != port.dtype or not same:
                raise EngineError(
                    f"{path}: {kind} {port.name!r}: the manifest says {port.dtype} {port.shape}, the graph has {dtype} {shape}."
                )
        if kind == "input" and len(shapes) != len(ports):
            raise EngineError(
                f"{path}: the graph has inputs {sorted(shapes)}, the manifest lists {[port.name for port in ports]}."
            )


_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def version_of(text: str) -> tuple[int, ...]:
    """(major, minor, ...) up to the first part that is no number."""
    parts: list[int] = []
    for part in text.split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)
