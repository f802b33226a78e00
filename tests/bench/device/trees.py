"""Devices as the kernel shows them: files with what real boards and machines hold, by path below "/".

Formats: docs.kernel.org (cpufreq, thermal, powercap, hwmon, proc, cgroup); NVIDIA's Jetson Linux developer guides for r32 to r38.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

CPU0, CPU1 = "sys/devices/system/cpu/cpu0", "sys/devices/system/cpu/cpu1"
FREQ, ZONE, COOL, HWMON = (
    "sys/devices/system/cpu/cpufreq/policy", "sys/class/thermal/thermal_zone", "sys/class/thermal/cooling_device", "sys/class/hwmon/hwmon",
)  # fmt: skip


def policy(
    number: int, cpus: str, governor: str, now: int, low: int = 800_000, high: int = 3_400_000
) -> dict[str, str]:
    """One clock domain; kHz."""
    files = {
        "affected_cpus": cpus,
        "scaling_governor": governor,
        "scaling_cur_freq": now,
        "scaling_min_freq": low,
        "scaling_max_freq": high,
    }
    return {f"{FREQ}{number}/{name}": str(value) for name, value in files.items()}


def zone(number: int, kind: str, millidegrees: int | str) -> dict[str, str]:
    return {f"{ZONE}{number}/type": kind, f"{ZONE}{number}/temp": str(millidegrees)}


def cooling(number: int, kind: str, state: int) -> dict[str, str]:
    return {f"{COOL}{number}/type": kind, f"{COOL}{number}/cur_state": str(state)}


def ina3221(number: int, *rails: tuple[str, int, int]) -> dict[str, str]:
    """A chip of three rails: label, mV, mA; with the sum that the driver adds as in7."""
    chip = f"{HWMON}{number}"
    files = {
        f"{chip}/name": "ina3221",
        f"{chip}/in7_label": "sum of shunt voltages",
        f"{chip}/in7_input": "1240",
    }
    for index, (label, millivolts, milliamperes) in enumerate(rails, 1):
        files |= {
            f"{chip}/in{index}_label": label,
            f"{chip}/in{index}_input": str(millivolts),
            f"{chip}/curr{index}_input": str(milliamperes),
        }
    return files | {f"{chip}/curr4_input": "1600", f"{chip}/in4_label": "", f"{chip}/in4_input": "3"}


DESKTOP = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i7-10700\nflags\t\t: fpu sse avx2\ncpu MHz\t\t: 4600.021\n",
    **policy(0, "0", "powersave", 4_600_123), **policy(1, "1", "powersave", 4_700_000), **policy(2, "2", "performance", 5_000_000),
    f"{CPU0}/thermal_throttle/core_throttle_count": "7", f"{CPU1}/thermal_throttle/core_throttle_count": "0",
    f"{HWMON}0/name": "nvme", f"{HWMON}0/temp1_input": "81850",
    f"{HWMON}1/name": "coretemp", f"{HWMON}1/temp1_input": "61000", f"{HWMON}1/temp1_label": "Package id 0", f"{HWMON}1/temp2_input": "64000",
    **zone(0, "acpitz", 27_800), **zone(1, "x86_pkg_temp", 61_000), **cooling(0, "Processor", 0), **cooling(1, "intel_powerclamp", -1),
    "sys/class/powercap/intel-rapl:0/name": "package-0", "sys/class/powercap/intel-rapl:0/energy_uj": "262143000000",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850",
    "sys/class/powercap/intel-rapl:0:0/name": "core", "sys/class/powercap/intel-rapl:0:0/energy_uj": "111",
    "sys/class/powercap/intel-rapl:0:1/name": "dram", "sys/class/powercap/intel-rapl:0:1/energy_uj": "5000000",
    "sys/class/powercap/intel-rapl:0:1/max_energy_range_uj": "65712999613",
    "sys/class/powercap/intel-rapl:1/name": "psys", "sys/class/powercap/intel-rapl:1/energy_uj": "99",
    "sys/class/powercap/intel-rapl-mmio:0/name": "package-0", "sys/class/powercap/intel-rapl-mmio:0/energy_uj": "1",
    "sys/class/dmi/id/sys_vendor": "Dell Inc.", "sys/class/dmi/id/product_name": "OptiPlex 7080",
    "sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc hpet acpi_pm",
    "proc/meminfo": "MemTotal:       32602340 kB\nMemAvailable:   28117848 kB\nHugePages_Total:       0\n",
    "proc/loadavg": "0.31 0.28 0.20 1/812 4041",
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.4 LTS"\n',
}  # fmt: skip

_JETSON = {
    "proc/cpuinfo": "".join(
        f"processor\t: {n}\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU variant\t: 0x0\nCPU part\t: 0xd42\n\n"
        for n in range(6)
    ),
    "proc/meminfo": "MemTotal:        7802864 kB\nMemAvailable:    5117848 kB\n",
}

# Orin Nano, JetPack 6.2
ORIN_NANO = {
    **_JETSON,
    "sys/firmware/devicetree/base/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "sys/firmware/devicetree/base/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n",
    **policy(0, "0 1 2 3", "schedutil", 1_728_000, 729_600, 1_728_000), **policy(4, "4 5", "schedutil", 729_600, 729_600, 1_728_000),
    **zone(0, "cpu-thermal", 52_875), **zone(1, "gpu-thermal", 51_031), **zone(2, "cv0-thermal", -256_000), **zone(8, "tj-thermal", 53_062),
    **cooling(0, "pwm-fan", 2), **cooling(1, "cpu-throttle-alert", 0), **cooling(2, "gpu-throttle-alert", 0), **cooling(3, "devfreq-17000000.gpu", 0),
    "sys/class/devfreq/17000000.gpu/cur_freq": "1020000000", "sys/class/devfreq/17000000.gpu/min_freq": "306000000",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000", "sys/class/devfreq/17000000.gpu/device/load": "873",
    "sys/class/devfreq/15480000.nvdec/cur_freq": "1190400000",
    "sys/kernel/debug/bpmp/debug/clk/emc/rate": "3199000000",
    f"{HWMON}0/name": "pwmfan", **ina3221(1, ("VDD_IN", 5024, 1528), ("VDD_CPU_GPU_CV", 5024, 480), ("VDD_SOC", 5024, 312)),
    f"{HWMON}3/name": "soctherm_oc", f"{HWMON}3/oc1_event_cnt": "0", f"{HWMON}3/oc2_event_cnt": "0", f"{HWMON}3/oc3_event_cnt": "27",
}  # fmt: skip

# AGX Orin, JetPack 5.1: two chips, no rail of the whole
AGX_ORIN = {
    **_JETSON,
    "sys/firmware/devicetree/base/model": "Jetson AGX Orin Developer Kit\0",
    "sys/firmware/devicetree/base/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0",
    "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1 19:57:35 UTC 2023\n",
    **zone(0, "CPU-therm", 47_406), **zone(1, "GPU-therm", -256_000), **zone(9, "tj-therm", 47_406),
    "sys/class/devfreq/17000000.ga10b/cur_freq": "1300500000", "sys/class/devfreq/17000000.ga10b/min_freq": "1300500000",
    "sys/class/devfreq/17000000.ga10b/max_freq": "1300500000", "sys/devices/gpu.0/load": "0",
    **ina3221(3, ("VDD_GPU_SOC", 19808, 160), ("VDD_CPU_CV", 19808, 40), ("VIN_SYS_5V0", 5024, 920)),
    **ina3221(4, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5008, 60), ("NC", 0, 0)),
}  # fmt: skip

# Nano, JetPack 4.6: the older driver
_IIO = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
NANO = {
    "proc/cpuinfo": "CPU implementer\t: 0x41\nCPU part\t: 0xd07\n" * 4,
    "proc/meminfo": "MemTotal:        4051268 kB\n",
    "sys/firmware/devicetree/base/model": "NVIDIA Jetson Nano Developer Kit\0",
    "sys/firmware/devicetree/base/compatible": "nvidia,p3450-0000\0nvidia,jetson-nano\0nvidia,tegra210\0",
    "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 29689493, BOARD: t210ref, EABI: aarch64, DATE: Mon Feb 21 2022\n",
    **zone(0, "AO-therm", 45_000), **zone(1, "CPU-therm", 41_500), **zone(2, "GPU-therm", 40_000), **zone(3, "PMIC-Die", 100_000),
    "sys/class/devfreq/57000000.gpu/cur_freq": "921600000", "sys/devices/gpu.0/load": "990",
    f"{_IIO}/rail_name_0": "POM_5V_IN", f"{_IIO}/in_power0_input": "4250", f"{_IIO}/rail_name_1": "POM_5V_GPU", f"{_IIO}/in_power1_input": "480",
    f"{_IIO}/rail_name_2": "POM_5V_CPU", f"{_IIO}/in_power2_input": "1520",
}  # fmt: skip

# AGX Thor, JetPack 7: the GPU's sensor gives nothing while it sleeps, idle rails may lie below zero
THOR = {
    "proc/cpuinfo": "CPU implementer\t: 0x41\nCPU part\t: 0xd83\n" * 14,
    "proc/meminfo": "MemTotal:      128811280 kB\n",
    "sys/firmware/devicetree/base/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "sys/firmware/devicetree/base/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,tegra264\0",
    "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64\n",
    **zone(0, "cpu-thermal", 53_700), **zone(4, "tj-thermal", 55_100),
    **cooling(9, "gpu-throttle-alert", 1), **cooling(12, "devfreq-gpu-gpc-0", 18), **cooling(7, "pwm-fan", 4),
    "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000", "sys/class/devfreq/gpu-nvd-0/cur_freq": "1692000000",
    **ina3221(5, ("VDD_GPU", 12040, -32), ("VDD_CPU_SOC_MSS", 12040, 544), ("VIN_SYS_5V0", 5088, 1280)),
}  # fmt: skip


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """Write the files below `root`, which is returned."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if content.endswith(("\0", "\n")) else content + "\n")
    return root
