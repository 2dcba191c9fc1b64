"""Virtual environments of peers that are Python packages: one each, so that no peer's needs meet those of fs3."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.peers.peer import Missing

_PATIENCE_S = 600.0
_STAMP = "installed"


def python_with(folder: Path, packages: tuple[str, ...], *, install: bool) -> Path:
    """The Python of the environment in `folder` that has `packages`, pinned ("redis==8.1.0").

    Made there if `install` and it is missing or has others. Raises: Missing.
    """
    stamp, python = folder / _STAMP, folder / "bin" / "python"
    wanted = "\n".join(packages) + "\n"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    if not install:
        raise Missing(f"{' '.join(packages)} is not installed in {folder.name}; a run without --quick does that")
    stamp.unlink(missing_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _run(*command: str) -> None:
    """Raises: Missing, with the last words of what failed."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        raise Missing(f"cannot be installed: not done within {_PATIENCE_S:.0f} s") from None
    if ended.returncode:
        said = (ended.stderr or ended.stdout).strip().splitlines()
        raise Missing(f"cannot be installed: {said[-1] if said else 'no word of why'}")
