"""The kind of machine, in words, and the versions on which a figure depends."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from compress_core import lock

EXTENSIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "BF16",
    "amx_int8": "AMX",
    "asimd": "NEON",
    "sve": "SVE",
}
"""What a Linux kernel calls the vector extensions that matter here, and what people call them."""
OTHERS = ("torch-pruning", "tensorly")
"""Distributions beside compress's own runtimes that a figure may depend on."""


def machine_kind(threads: int) -> str:
    """Processor, cores, vector extensions, system and threads, in words."""
    found = lock.machine()
    cores = f"{found['cores']} cores" if found["cores"] > 1 else "1 core"
    parts = [found["processor"], cores, found["architecture"], *extensions(), found["system"]]
    return ", ".join([*parts, "1 thread" if threads == 1 else f"{threads} threads"])


def extensions(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The vector extensions of the processor; none where the system does not tell."""
    with suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in {"flags", "features"}:
                flags = set(value.split())
                return [name for flag, name in EXTENSIONS.items() if flag in flags]
    return []


def versions() -> dict[str, str]:
    """Of python, compress and the libraries that compute, by name."""
    found = lock.machine()
    names = {name: lock.version_of(name) for name in ("compress-core", *OTHERS)}
    known = {"python": found["python"], **found["versions"], **names}
    return {name: version for name, version in sorted(known.items()) if version}
