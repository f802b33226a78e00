"""Jetson boards of four generations, as their files and as `tegrastats` tell of them. None was at hand: formats are the documented ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgeclip.bench.device import jetson, rails, tegrastats
from tests.bench.device.trees import AGX_ORIN, DESKTOP, HWMON, NANO, ORIN_NANO, THOR, plant
from tests.mutants import broken


@pytest.mark.parametrize(
    ("tree", "name", "release", "fixed", "most"),
    [(ORIN_NANO, "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "36.4.3", False, 1020),
     (AGX_ORIN, "Jetson AGX Orin Developer Kit", "35.4.1", True, 1300.5), (NANO, "NVIDIA Jetson Nano Developer Kit", "32.7.1", None, None),
     (THOR, "NVIDIA Jetson AGX Thor Developer Kit", "38.2.0", None, None)],
)  # fmt: skip
def test_boards(tmp_path, tree, name, release, fixed, most):
    assert jetson.present(plant(tmp_path, tree))
    board = jetson.describe(tmp_path)
    assert (board.name, board.release, board.fixed, board.gpu_max_mhz, board.power_mode) == (
        name,
        release,
        fixed,
        most,
        None,
    )


def test_in_a_container(tmp_path):
    """Docker masks /sys/firmware; soc0 says what is left."""
    plant(tmp_path, {"sys/devices/soc0/family": "Tegra", "sys/devices/soc0/machine": "NVIDIA Jetson Orin NX"})
    assert jetson.present(tmp_path)
    assert jetson.describe(tmp_path).name == "NVIDIA Jetson Orin NX"
    assert jetson.describe(tmp_path).release is None
    plant(tmp_path / "l4t", {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1"})
    assert jetson.present(tmp_path / "l4t")
    assert jetson.describe(tmp_path / "l4t").release == "36.4.3"


def test_a_pc_is_none(tmp_path):
    assert not jetson.present(plant(tmp_path, DESKTOP))


@pytest.mark.parametrize(
    ("tree", "covers", "watts", "gauges"),
    [(ORIN_NANO, "VDD_IN", 5.024 * 1.528, {"gpu clock": 1020, "gpu load": 87.3, "memory clock": 3199}),
     (AGX_ORIN, "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0", 19.808 * 0.2 + 5.024 * 0.92, {"gpu clock": 1300.5, "gpu load": 0}),
     (NANO, "POM_5V_IN", 4.25, {"gpu clock": 921.6, "gpu load": 99}),
     (THOR, "VDD_GPU+VDD_CPU_SOC_MSS+VIN_SYS_5V0", 12.04 * (0.544 - 0.032) + 5.088 * 1.28, {"gpu clock": 1575})],
)  # fmt: skip
def test_samples(tmp_path, tree, covers, watts, gauges):
    source = jetson.open_source(plant(tmp_path, tree))
    assert source.covers == f"rails {covers} (the module, without its carrier board)"
    assert source.sample().gauges == pytest.approx(gauges)
    assert source.sample().power_w == pytest.approx(watts, abs=1e-9)
    assert ("state.memory_clock" in source.not_measured) == ("memory clock" not in gauges)


def test_a_lost_rail_makes_no_smaller_sum(tmp_path):
    source = jetson.open_source(plant(tmp_path, AGX_ORIN))
    plant(tmp_path, {f"{HWMON}3/curr3_input": "busy"})
    assert source.sample().power_w is None


def test_the_check_above_bites():
    everything = broken(
        rails.total, "all(name in watts for name in names)", "any(name in watts for name in names)"
    )
    with pytest.raises(KeyError):
        everything({"VDD_GPU_SOC": 3.0})
    assert rails.total({"VDD_GPU_SOC": 3.0}) is None


def test_a_rail_that_gives_its_power(tmp_path):
    chip = f"{HWMON}2"
    plant(tmp_path, {f"{chip}/name": "ina238", f"{chip}/in1_label": "VIN", f"{chip}/in1_input": "19800",
                     f"{chip}/curr1_input": "1000", f"{chip}/power1_input": "23125000"})  # fmt: skip
    (rail,) = rails.find(tmp_path)
    assert rails.total({rail.name: rail.watts() or 0}) == ("VIN", 23.125)


def test_over_current_is_counted(tmp_path):
    source = jetson.open_source(plant(tmp_path, ORIN_NANO))
    before = source.sample().events
    plant(tmp_path, {f"{HWMON}3/oc3_event_cnt": "31"})
    grown = {name: count - before[name] for name, count in source.sample().events.items()}
    assert grown == {
        "the board slowed its chip for low voltage {} times (oc1)": 0, "the board slowed its chip for average over-current {} times (oc2)": 0,
        "the board slowed its chip for instantaneous over-current {} times (oc3)": 4,
    }  # fmt: skip
    assert source.tells
    assert not jetson.open_source(plant(tmp_path / "nano", NANO)).tells


def test_power_mode(tmp_path):
    plant(
        tmp_path,
        {
            **ORIN_NANO,
            "usr/sbin/nvpmodel": "#!/bin/sh\n[ \"$1\" = -q ] && printf 'NV Power Mode: MAXN_SUPER\\n2\\n'",
        },
    )
    (tmp_path / "usr/sbin/nvpmodel").chmod(0o755)
    assert jetson.describe(tmp_path).power_mode == "MAXN_SUPER"
    plant(tmp_path / "old", {**ORIN_NANO, "usr/sbin/nvpmodel": "#!/bin/sh\nexit 3"})
    (tmp_path / "old/usr/sbin/nvpmodel").chmod(0o755)
    assert jetson.describe(tmp_path / "old").power_mode is None


# Lines of boards as their owners published them, JetPack 4 to 7.
NANO_4 = (
    "RAM 2145/3964MB (lfb 118x4MB) SWAP 0/1982MB (cached 0MB) CPU [25%@1479,35%@1479,off,off] EMC_FREQ 10%@1600 GR3D_FREQ 99%@921 "
    "PLL@40C CPU@46.5C PMIC@100C GPU@43C AO@45C thermal@46.2C POM_5V_IN 4250/4125 POM_5V_GPU 480/480 POM_5V_CPU 1520/1520"
)
TX2_4 = (
    "RAM 2135/7855MB (lfb 1057x4MB) CPU [2%@2035,0%@2035,0%@2035,2%@2035,2%@2036,2%@2035] EMC_FREQ 1%@1866 GR3D_FREQ 0%@1300 APE 150 "
    "MTS fg 0% bg 0% BCPU@30C MCPU@31C GPU@29C PLL@30C Tboard@28C Tdiode@28.25C PMIC@100C thermal@29.4C VDD_IN 3104/4029 VDD_CPU 291/730"
)
AGX_ORIN_5 = (
    "04-24-2023 00:01:24 RAM 1282/62795MB (lfb 15152x4MB) SWAP 0/31398MB (cached 0MB) CPU [0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@0 "
    "GR3D2_FREQ 0%@0 VIC_FREQ 729 APE 174 CV0@-256C CPU@42.593C Tboard@32C SOC2@39.343C GPU@-256C tj@42.593C VDD_GPU_SOC 2399mW/2399mW "
    "VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 4032mW/4032mW NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
ORIN_NANO_6 = (
    "10-06-2026 12:00:01 RAM 2493/7620MB (lfb 1x4MB) SWAP 12/3810MB (cached 0MB) CPU [5%@729,3%@729,0%@729,0%@1728,0%@729,1%@729] "
    "EMC_FREQ 3%@2133 GR3D_FREQ 37%@[918,305] NVDEC off cpu@45.5C soc2@44.1C gpu@44.2C tj@45.5C VDD_IN 4542mW/4000mW VDD_CPU_GPU_CV 495mW/400mW "
    "VDD_SOC 1286mW/1200mW"
)
AGX_ORIN_7 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2188] EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] NVENC0 off VIC off "
    "APE 174 cpu@52.968C/52.968C gpu@47.625C/49.0C VDD_GPU_SOC 5139mW/5139mW/6000mW VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW"
)
THOR_7 = (
    "RAM 4722/125788MB (lfb 1x512kB) CPU [0%@972,1%@2601] EMC_FREQ @4266 GR3D_FREQ @[1000,1575,1000] APE 150 tj@55.1C VDD_GPU -392mW/0mW/0mW "
    "VDD_CPU_SOC_MSS 3924mW/3924mW/3924mW VIN_SYS_5V0 6520mW/6520mW/6520mW VIN 23100mW/23000mW/24000mW"
)
XAVIER_4 = (
    "RAM 5059/30623MB (lfb 5843x4MB) SWAP 0/15311MB (cached 0MB) CPU [15%@1190,8%@853] EMC_FREQ 5%@2133 GR3D_FREQ 0%@318 AO@33C GPU 0/0 CPU 311/311 "
    "SOC 932/932 CV 0/0 VDDRQ 310/310 SYS5V 1960/1960"
)


@pytest.mark.parametrize(
    ("line", "gauges", "watts"),
    [(NANO_4, {"cpu clock": 1479, "gpu clock": 921, "gpu load": 99, "memory clock": 1600, "cpu temperature": 46.5, "gpu temperature": 43}, 4.25),
     (TX2_4, {"cpu clock": 2036, "gpu clock": 1300, "gpu load": 0, "memory clock": 1866, "cpu temperature": 31, "gpu temperature": 29}, 3.104),
     (XAVIER_4, {"cpu clock": 1190, "gpu clock": 318, "gpu load": 0, "memory clock": 2133}, 3.513),
     (AGX_ORIN_5, {"cpu clock": 729, "gpu clock": 0, "gpu load": 0, "memory clock": 2133, "cpu temperature": 42.593, "junction temperature": 42.593}, 6.831),
     (ORIN_NANO_6, {"cpu clock": 1728, "gpu clock": 918, "gpu load": 37, "memory clock": 2133, "cpu temperature": 45.5, "gpu temperature": 44.2,
                    "junction temperature": 45.5}, 4.542),
     (AGX_ORIN_7, {"cpu clock": 2201, "gpu clock": 1300, "gpu load": 12, "memory clock": 3199, "cpu temperature": 52.968, "gpu temperature": 47.625}, 13.907),
     (THOR_7, {"cpu clock": 2601, "gpu clock": 1575, "memory clock": 4266, "junction temperature": 55.1}, 23.1)],
)  # fmt: skip
def test_lines_of_tegrastats(line, gauges, watts):
    said = tegrastats.reading(tegrastats.parse(line))
    assert said.gauges == gauges
    assert said.power_w == pytest.approx(watts)


def test_a_line_in_full():
    line = tegrastats.parse(NANO_4)
    assert (line.memory_bytes, line.memory_total_bytes) == (2145 << 20, 3964 << 20)
    assert line.cpu_load == (25, 35, None, None)
    assert (line.emc_load, line.gpu_load) == (10, 99)
    assert line.temperatures == {"pll": 40, "cpu": 46.5, "pmic": 100, "gpu": 43, "ao": 45, "thermal": 46.2}
    assert line.rails_w == {"POM_5V_IN": 4.25, "POM_5V_GPU": 0.48, "POM_5V_CPU": 1.52}  # neither RAM nor SWAP
    assert list(tegrastats.parse(AGX_ORIN_5).rails_w) == [
        "VDD_GPU_SOC",
        "VDD_CPU_CV",
        "VIN_SYS_5V0",
        "VDDQ_VDD2_1V8AO",
    ]
    assert tegrastats.parse("RAM 1/2MB CPU [1%,2%]@1420 GR3D_FREQ 5%").cpu_mhz == 1420
    assert tegrastats.parse("RAM 1/2MB CPU [1%@1] EMC_FREQ 0% GR3D_FREQ 5% VIC off").gpu_mhz is None
    for wrong in ("", "tegrastats: command not found", "RAM 1/2MB", "CPU [1%@2]"):
        assert tegrastats.parse(wrong) is None


def test_the_program_runs_and_ends(tmp_path):
    program = plant(
        tmp_path,
        {"usr/bin/tegrastats": f"#!/bin/sh\necho noise\nwhile :; do echo '{ORIN_NANO_6}'; sleep 0.05; done"},
    )
    (program / "usr/bin/tegrastats").chmod(0o755)
    source = tegrastats.open_source(tmp_path)
    try:
        assert source.covers == "tegrastats VDD_IN (the module, without its carrier board)"
        assert source.sample().power_w == 4.542
    finally:
        source.close()
    assert source._process.returncode is not None


def test_a_program_that_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tegrastats, "PERIOD_MS", 10)
    plant(tmp_path, {"usr/bin/tegrastats": "#!/bin/sh\nexit 1"})
    (tmp_path / "usr/bin/tegrastats").chmod(0o755)
    source = tegrastats.open_source(tmp_path)
    source.close()
    assert source.covers == ""
    assert "gives no line within 0.04 s" in source.not_measured["state.board_power"]


def test_jtop_is_never_loaded():
    script = "import sys, edgeclip.bench.device; print([name for name in sys.modules if name.startswith(('jtop', 'pynvml', 'torch', 'onnxruntime'))])"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
