"""TensorRT's errors in one line, its warnings in the log, its own writing nowhere."""

from __future__ import annotations

import logging
import os
import stat
import sys
import threading

import pytest

from edgeclip.runtime.tensorrt import messages
from edgeclip.runtime.tensorrt.messages import hushed, in_words, listening, logger_of
from tests.runtime.tensorrt.surface import library

_SAID = {
    "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([myelin_graph.h:1295: attachExceptionMsgToGraph] MyelinCheckException: "
    "decompose_composite_ops.cpp:59: CHECK(composite_op->is_decomposable()) failed. Attention operation was not supported by a dedicated "
    "kernel.  (See https://docs.nvidia.com/x.html#y for shapes.)  Alternatively, padded attention operation may be marked)":
        "Attention operation was not supported by a dedicated kernel. Build the variant with decomposed attention (--variant).",
    "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([tactic.cpp:1676: enumerate_tactics] Tactic Selection: no tactics to implement "
    "the operation within workspace limit. Consider increase the allowed workspace size if applicable.; [tactic.cpp:264: run] Error during "
    "tactic selection. In compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)":
        "Tactic Selection: no tactics to implement the operation within workspace limit. Error during tactic selection. "
        "Give a larger --workspace, or a smaller --batch.",
    "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([myelin_graph.h:1295: attachExceptionMsgToGraph] MyelinCheckException: "
    "graph_jit.cpp:278: CHECK(status == CUDA_SUCCESS) failed.  In compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)":
        "CHECK(status == CUDA_SUCCESS) failed. This needs an NVIDIA GPU and its driver.",
    "10: [optimizer.cpp::computeCosts::4048] Error Code 10: Internal Error (Could not find any implementation for node {Foreign[/a/b]}.)":
        "Could not find any implementation for node {Foreign[/a/b]}. Give a larger --workspace or a higher --level, or build the variant with "
        "decomposed attention (--variant).",
    "1: [defaultAllocator.cpp::allocate::20] Error Code 1: Cuda Runtime (out of memory)":
        "out of memory. Close other programs, or build with --low-memory or a smaller --batch.",
    "In node -1 with name:  and operator:  (parseFromFile): INVALID_VALUE: Assertion failed: stat(file, &sb) == 0: Input is not a file: a.onnx":
        "Input is not a file: a.onnx. Ask.",
    "something new": "something new. Ask.",
}  # fmt: skip


@pytest.mark.parametrize("said", _SAID)
def test_an_error_in_words(said: str) -> None:
    assert in_words([said], "Ask.") == _SAID[said]


def test_no_error_at_all() -> None:
    assert in_words([], "Ask.") == "it gave no reason. Ask."


def test_errors_are_heard_by_who_listens_else_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    logger = logger_of(library("tensorrt 10.3.0", []))
    assert logger is logger_of(library("tensorrt 10.3.0", []))  # TensorRT passes over a second one
    severity = type("Severity", (), {"name": "ERROR"})
    with caplog.at_level(logging.INFO):
        with listening() as heard, listening() as other:
            logger.log(severity, "first")
            logger.log(type("Severity", (), {"name": "WARNING"}), "no error")
        assert heard == other == ["first"]
        logger.log(severity, "second")
    assert heard == ["first"]
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "no error"),
        ("WARNING", "second"),
    ]


def test_many_threads_listen_at_once() -> None:
    """Every call of a running engine listens: none may lose another's place, or leave its own behind."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    lost: list[str] = []

    def work(name: int) -> None:
        for i in range(1000):
            with listening() as heard:
                messages._hear("ERROR", f"{name} {i}")
                lost.extend([f"{name} {i}"] if f"{name} {i}" not in heard else [])

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    assert (lost, messages._listeners) == ([], [])


def test_lines_of_the_compiler_are_kept_off_the_screen(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", before := open(2, "w", closefd=False))  # noqa: SIM115
    with hushed():
        os.write(2, b"Internal Error: MyelinCheckException: x.cpp:59\nanother program's line\n")
        print("ours", file=sys.stderr)
        assert not stat.S_ISFIFO(
            os.fstat(sys.stderr.fileno()).st_mode
        )  # a bar sees the terminal, not the pipe
    assert sys.stderr is before
    os.write(2, b"Internal Error: after\n")
    assert sorted(capfd.readouterr().err.splitlines()) == [
        "Internal Error: after",
        "another program's line",
        "ours",
    ]


def test_a_process_without_stderr_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(descriptor: int) -> int:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(os, "dup", closed)
    with hushed():
        pass
