"""The processor: its name, and the instructions it has for products of matrices."""

from __future__ import annotations

import platform
from pathlib import Path

from .machine import system_number, system_text

# As /proc/cpuinfo has them, and as people write them.
_X86 = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
}
_ARM = {
    "asimddp": "NEON dotprod",
    "i8mm": "NEON i8mm",
    "bf16": "NEON BF16",
    "sve": "SVE",
    "sve2": "SVE2",
    "sme": "SME",
    "sme2": "SME2",
}
# Names of sysctl on macOS.
_MACOS = {
    "hw.optional.avx2_0": "AVX2",
    "hw.optional.avx512f": "AVX-512",
    "hw.optional.arm.FEAT_DotProd": "NEON dotprod",
    "hw.optional.arm.FEAT_I8MM": "NEON i8mm",
    "hw.optional.arm.FEAT_BF16": "NEON BF16",
    "hw.optional.arm.FEAT_SME": "SME",
    "hw.optional.arm.FEAT_SME2": "SME2",
}


def name() -> str:
    """The processor's name; the numbers of its maker and its kind where Linux on ARM has no name for it."""
    if platform.system() == "Darwin":
        return system_text("machdep.cpu.brand_string") or platform.machine()
    told = _cpuinfo()
    if "model name" in told:
        return told["model name"]
    numbers = [f", {word} {told[word]}" for word in ("CPU implementer", "CPU part") if word in told]
    return platform.machine() + "".join(numbers)


def multiplies() -> tuple[str, ...]:
    """The instructions for products that the processor has, and that the system lets programs use."""
    if platform.system() == "Darwin":
        return tuple(said for key, said in _MACOS.items() if system_number(key))
    told = _cpuinfo()
    arm = "Features" in told
    words = told.get("Features" if arm else "flags", "").split()
    return tuple(said for word, said in (_ARM if arm else _X86).items() if word in words)


def _cpuinfo() -> dict[str, str]:
    """The first core's lines in /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = path.read_text(errors="replace").strip().partition("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
