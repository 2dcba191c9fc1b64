"""The machine and the versions that a report's figures belong to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import psutil

from fs3_trainer.demo.units import size

PACKAGES = ("fs3-storage", "torch", "numpy", "grpcio", "rocksdict", "tokenizers", "fsspec")


def machine() -> dict[str, str]:
    """Facts in the order in which they are shown."""
    return {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores usable",
        "memory": size(psutil.virtual_memory().total),
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
