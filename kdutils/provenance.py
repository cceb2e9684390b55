"""Where a record comes from: versions, commit and device; never a path or the name of a host."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
import subprocess
import sys
from pathlib import Path


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on; read without importing any of it."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> tuple[str | None, bool | None]:
    """Commit of the code, and whether kdutils differs from it; asked once, since a process does not import again."""
    here = Path(__file__).resolve().parent
    try:
        head, status = (
            subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, check=True).stdout.strip()
            for args in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "."))
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return head, bool(status)


@functools.cache
def _processor() -> str:
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()


def device() -> str:
    """Name of the GPU where this process has used one, else of the processor."""
    torch = sys.modules.get("torch")  # a run that used a GPU has imported it; a look-up has not
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    return _processor()
