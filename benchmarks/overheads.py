"""What the book's own machinery costs: a run of a sweep that does nothing, the pages, a chapter that only looks up."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.clock import now, row
from kdutils.chapters import chapters
from kdutils.records import Spec, Store, repository
from kdutils.sweep import run_sweep

RUNS = 50  # of a sweep, beside the first


def nothing(spec: Spec) -> dict:
    """A run that takes no time."""
    return {"metrics": {"dev": {"accuracy": 1.0}}}


def sweep() -> list[dict]:
    """Seconds of a sweep of a run that does nothing, a worker's start included, and of each of `RUNS` further ones."""
    def seconds(count):
        with tempfile.TemporaryDirectory() as folder:
            specs = [Spec("01_pilot", "synthetic", "nothing", "smoke", seed, {}, {}) for seed in range(count)]
            started = now()
            with contextlib.redirect_stdout(io.StringIO()):  # a line for every run
                swept = run_sweep(specs, gpus=[], run=nothing, store=Store(folder), progress=False)
            if len(swept.done) != count:
                raise RuntimeError(f"sweep: got {len(swept.done)} runs; allowed: {count}")
            return now() - started

    one, many = seconds(1), seconds(RUNS + 1)
    return [row("a sweep of one empty run", one), row("each further run", (many - one) / RUNS)]


def pages() -> list[dict]:
    """Seconds to render the published book, and to execute each chapter by looking its runs up."""
    root, tools = repository(), Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        build = [tools / "jupyter-book", "build", "--quiet", "--path-output", folder, root]
        rows = [_timed("rendering the book", build)]
        for name in chapters(root):
            command = [sys.executable, "-m", "kdutils.chapters", "run", name, "--profile", "mini", "--out", folder]
            rows.append(_timed(f"looking up {name}", command))
    return rows


def _timed(what: str, command: list) -> dict:
    started = now()
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=repository(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what}: got exit {done.returncode}; allowed: 0: {done.stderr.strip()[-300:]}")
    return row(what, now() - started)
