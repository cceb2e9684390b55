"""The clock of every part, and a line of its table."""

from __future__ import annotations

import os
import sys
import time

import numpy as np


def now() -> np.ndarray:
    """Seconds on the wall and seconds of cores, ended children's included, after a GPU has done what it was given. On a
    machine that does other things as well, only the second are the workload's own."""
    torch = sys.modules.get("torch")  # the workers of a sweep that does nothing have no need of it
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    children = sum(os.times()[2:4])  # in hundredths of a second; the process's own, with no such step, are read apart
    return np.array([time.perf_counter(), time.process_time() + children])


def row(what: str, seconds: np.ndarray, **more) -> dict:
    return {"what": what, "seconds": float(seconds[0]), "cpu seconds": float(seconds[1])} | more
