"""The chapters' experiments, one module each.

A chapter's module has `plan(profile, task) -> list[Spec]`, in order of priority and never in need of torch (a look-up
plans too), and `run(spec) -> outcome`, which trains.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from kdutils.records import Spec

CHAPTERS = {
    "00_choices": "choices",
    "01_pilot": "pilot",
    "02_stark": "stark",
    "03_stark_auto": "stark_auto",
    "04_peakd": "peakd",
    "05_knowledge_probes": "probes",
    "06_ksm": "ksm",
}


def _module(chapter: str) -> ModuleType:
    if chapter not in CHAPTERS:
        raise ValueError(f"chapter: got {chapter!r}; allowed: {', '.join(CHAPTERS)}")
    return importlib.import_module(f"{__name__}.{CHAPTERS[chapter]}")


def written() -> list[str]:
    """The chapters whose experiments can be planned and run."""
    return [chapter for chapter, name in CHAPTERS.items() if importlib.util.find_spec(f"{__name__}.{name}")]


def plan(chapter: str, profile: str, task: str | None = None) -> list[Spec]:
    """The runs of a chapter, the most important first; `task=None` takes every task of the profile in its order.

    Raises ValueError, in one line, for an unknown chapter, profile or task.
    """
    from kdutils import profiles

    module = _module(chapter)
    names = profiles.task_names(profile)
    if task is not None and task not in names:
        raise ValueError(f"task: got {task!r} for profile {profile!r}; allowed: {', '.join(names)}")
    return [spec for name in ([task] if task else names) for spec in module.plan(profile, name)]


def run(spec: Spec) -> dict:
    """Train and measure one run; returns its outcome (see `kdutils.records`). ValueError for an unknown chapter."""
    return _module(spec.chapter).run(spec)
