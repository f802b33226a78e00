"""`edgeclip doctor` says what runs here, and the command for what does not."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path

import pytest

from edgeclip.bench import device
from edgeclip.bench.device.source import Reading
from edgeclip.doctor import machine
from tests.cli.conftest import Edgeclip, Said

CPU, CUDA = "engine onnxruntime-cpu", "engine onnxruntime-cuda"


def findings(said: Said) -> dict[str, dict[str, object]]:
    assert (said.code, said.err) == (0, "")
    return {found["topic"]: found for found in said.record["findings"]}


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make packages look as if they were not installed."""
    known = metadata.version

    def version(name: str) -> str:
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata, "version", version)


def test_this_machine(edgeclip: Edgeclip) -> None:
    found = findings(edgeclip("doctor", "--json"))
    assert str(found["python"]["detail"]).startswith(platform.python_version())
    assert found[CPU]["ok"]
    assert found[CPU]["detail"] == f"onnxruntime {metadata.version('onnxruntime')}"
    assert {"cpu", "memory", "gpu", "cache", "export and train"} <= found.keys()
    table = edgeclip("doctor").out
    assert all(topic in table for topic in found)


def test_onnxruntime_that_does_not_import(edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = findings(edgeclip("doctor", "--json"))
    assert not found[CPU]["ok"]
    assert found[CPU]["command"] == "pip install --force-reinstall onnxruntime"
    assert "\n  pip install --force-reinstall onnxruntime\n" in edgeclip("doctor").out


def test_missing_packages_name_their_extra(edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "onnxruntime", "onnxruntime-gpu", "torch")
    found = findings(edgeclip("doctor", "--json"))
    assert (found[CPU]["ok"], found[CPU]["command"]) == (False, "pip install 'edgeclip[cpu]'")
    assert CUDA not in found
    assert found["export and train"]["command"] == "pip install 'edgeclip[export]'"
    assert "not installed: torch" in str(found["export and train"]["detail"])


def test_two_onnxruntimes_in_one_folder(edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.2.3")
    found = findings(edgeclip("doctor", "--json"))
    assert not found[CUDA]["ok"]
    assert str(found[CUDA]["command"]).startswith("pip uninstall -y onnxruntime onnxruntime-gpu && ")


def test_damaged_embedded_bundle(
    toy: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("edgeclip.bundle.store.EMBEDDED", tmp_path)
    assert findings(edgeclip("doctor", "--json"))["bundle toy"]["ok"]
    (toy / "tokenizer.json").write_text("{")
    found = findings(edgeclip("doctor", "--json"))["bundle toy"]
    assert not found["ok"]
    assert "tokenizer.json: 1 bytes, the manifest says" in str(found["detail"])


def test_run_without_onnxruntime_names_the_command(
    photos: Path, toy: Path, edgeclip: Edgeclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = edgeclip("classify", photos, "-b", toy, "--label", "a cat")
    assert said.code == 2
    assert said.line.endswith("Run: pip install 'edgeclip[cpu]'")


def test_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.cpu, "describe", lambda: device.cpu.Cpu("a CPU", "powersave", False))
    monkeypatch.setattr(device.surroundings, "virtual", lambda: "kvm")
    said = Reading({"cpu temperature": 61.4}, held=("cpu-throttle-alert",))
    monkeypatch.setattr(device.thermal.Thermal, "sample", lambda _: said)
    found = machine.clocks()
    assert found.detail == "governor powersave, cpu 61 °C, slowed by cpu-throttle-alert, in kvm"
    assert (found.ok, found.command) == (False, "sudo cpupower frequency-set -g performance")
