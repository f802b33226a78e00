"""A build that would not fit is refused before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeclip.bundle import Bundle
from edgeclip.errors import EngineError
from edgeclip.runtime.memory import available_memory
from edgeclip.runtime.tensorrt.builder import LOW_MEMORY_WORKSPACE
from edgeclip.runtime.tensorrt.library import Library
from edgeclip.runtime.tensorrt.memory import check_memory, needed_memory, shares_memory
from edgeclip.runtime.tensorrt.record import BuildOptions

MIB, GIB = 1 << 20, 1 << 30
RTX, PROPER = Library("tensorrt-rtx", None, "1.7.1.116"), Library("tensorrt", None, "10.3.0")
PLAIN = BuildOptions(({"N": (1, 8, 32)},))


def machine(root: Path, free: int, swap: int = 0, files: dict[str, str] | None = None) -> Path:
    """A file system that tells so much memory."""
    told = {
        "proc/meminfo": f"MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: {free >> 10} kB\nSwapFree: {swap >> 10} kB\nHugePages: 0\n"
    }
    for name, text in {**told, **(files or {})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_what_is_free_here_and_within_a_container(tmp_path: Path) -> None:
    assert available_memory(machine(tmp_path / "plain", 3 * GIB, GIB)) == 3 * GIB
    assert available_memory(machine(tmp_path / "plain", 3 * GIB, GIB), swap=True) == 4 * GIB
    assert available_memory(tmp_path / "unknown") is None
    two = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/a/memory.current": f"{GIB + 300 * MIB}\n",
        "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {100 * MIB}\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/b/memory.current": "1\n",
        "sys/fs/cgroup/a/b/memory.stat": "",
    }
    assert available_memory(machine(tmp_path / "two", 3 * GIB, GIB, two), swap=True) == GIB - 200 * MIB
    one = {
        "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n",  # seen from inside: /x is the mount's own root
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
        "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
    }
    assert available_memory(machine(tmp_path / "one", 3 * GIB, 0, one)) == 0


def test_a_need_counts_weights_beside_the_graph(tmp_path: Path, toy: Bundle) -> None:
    graph = tmp_path / "a.onnx"
    graph.write_bytes(b"x" * MIB)
    (tmp_path / "w.bin").write_bytes(b"x" * 9 * MIB)
    variant = replace(toy.manifest.variants[0], files=("graphs/a.onnx", "graphs/w.bin"))
    need = needed_memory(RTX, graph, variant, PLAIN, shared=False)
    assert need == 36 * MIB + 280 * MIB
    assert needed_memory(PROPER, graph, variant, PLAIN, shared=False) == need + GIB
    assert needed_memory(PROPER, graph, variant, PLAIN, shared=True) == need + GIB + 10 * MIB + GIB
    low = replace(PLAIN, low_memory=True)
    assert (
        needed_memory(PROPER, graph, variant, low, shared=True)
        == need + GIB + 10 * MIB + LOW_MEMORY_WORKSPACE
    )
    bound = replace(PLAIN, workspace=MIB)
    assert needed_memory(PROPER, graph, variant, bound, shared=True) == need + GIB + 11 * MIB


def test_too_little_is_refused_unless_forced(tmp_path: Path, toy: Bundle) -> None:
    variant = toy.manifest.variants[0]
    graph, small = toy.path(variant.files[0]), machine(tmp_path, 100 * MIB, 50 * MIB)
    with pytest.raises(EngineError) as refusal:
        check_memory(RTX, graph, variant, PLAIN, root=small)
    assert str(refusal.value) == (
        f"{graph}: building needs about 280 MiB of memory, 150 MiB are free. Close other programs, add swap, or pass --force."
    )
    check_memory(RTX, graph, variant, PLAIN, root=small, force=True)
    check_memory(RTX, graph, variant, PLAIN, root=machine(tmp_path, 200 * MIB, 100 * MIB))
    check_memory(RTX, graph, variant, PLAIN, root=tmp_path / "a system that does not say")


def test_a_jetson_is_told_of_the_preset(tmp_path: Path, toy: Bundle) -> None:
    variant = toy.manifest.variants[0]
    board = machine(tmp_path, GIB, 0, {"proc/device-tree/model": "NVIDIA Jetson Orin Nano\0"})
    assert shares_memory(board)
    assert not shares_memory(tmp_path / "proc")
    assert not shares_memory(machine(tmp_path / "pi", GIB, 0, {"proc/device-tree/model": "Raspberry Pi 5\0"}))
    assert shares_memory(machine(tmp_path / "jp6", GIB, 0, {"etc/nv_tegra_release": "# R36"}))
    graph = toy.path(variant.files[0])
    with pytest.raises(
        EngineError, match="Build with --low-memory, close other programs, add swap, or pass --force"
    ):
        check_memory(PROPER, graph, variant, PLAIN, root=board)
    with pytest.raises(EngineError, match=r"free\. Close other programs"):
        check_memory(PROPER, graph, variant, replace(PLAIN, low_memory=True), root=board)
