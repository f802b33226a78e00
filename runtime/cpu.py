"""What this processor's instruction set offers: it decides which integer types are fast, and which of them saturate."""

from __future__ import annotations

from pathlib import Path

FLAGS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
BYTE_SUMS = "byte_sums"  # key of Variant.requires; "wide": its bytes would saturate where `saturates` says so
# Products of bytes are summed in 32 bits. Without one of these, AVX2 and AVX-512 sum pairs of them in 16 bits and saturate.
_WIDE_SUMS = {"avx_vnni", "avx512_vnni", "amx_int8", "asimd"}


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """The instruction sets of FLAGS that this processor has; () where the system does not say."""
    try:
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                have = value.split()
                return tuple(flag for flag in FLAGS if flag in have)
    except OSError:
        pass
    return ()


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as the system gives it, "" where it does not say."""
    try:
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return ""


def saturates(flags: tuple[str, ...] | None = None) -> bool:
    """Whether products of unsigned and signed bytes may saturate here. Not known counts as yes."""
    return not _WIDE_SUMS & set(cpu_flags() if flags is None else flags)
