"""The chapters' experiments, one module each.

A chapter's module has `plan(profile, task) -> list[Spec]`, in order of priority and never in need of torch (a look-up
plans too), and either `run(spec) -> outcome`, which trains, or, where runs can share a pack, `stages(spec)`, the run as
a generator (see `packing`), with `kind(spec)`, equal for those that can and None for others.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType

from kdutils.records import Spec
from kdutils.spec import to_json

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
    from kdutils.experiments import packing

    module = _module(spec.chapter)
    return packing.alone(module.stages(spec)) if hasattr(module, "stages") else module.run(spec)


def packs(specs: Iterable[Spec]) -> list[list[Spec]]:
    """`specs` in groups that can be trained as packs, in the order of their first ones; a run that cannot is alone.

    Runs of a group have chapter, profile, task and settings in common, and their module's `kind`: students of one
    shape whose objectives can be evaluated at once. None waits for another.
    """
    groups: dict[tuple, list[Spec]] = {}
    for spec in specs:
        kind = getattr(_module(spec.chapter), "kind", lambda spec: None)(spec)
        shared = (spec.chapter, spec.profile, spec.task, to_json(spec.settings), kind)
        groups.setdefault((spec.key,) if kind is None else shared, []).append(spec)
    return list(groups.values())


@functools.cache  # a pack whose runs are held elsewhere is asked for again and again
def room(spec: Spec) -> int:
    """How many runs like `spec`, of a group with others, fit on the device at once."""
    from kdutils.experiments import packing

    return packing.room(_module(spec.chapter).stages(spec))


def run_pack(specs: Sequence[Spec], finished: Callable[[dict[Spec, dict | Exception]], None]) -> None:
    """Train `specs`, of one of the groups of `packs`, at once or, where memory runs out, in parts: `finished` gets the
    outcomes of each part as it ends. Each is what `run` gives, to rounding and but for dropout's masks; `extra` has
    besides `packed`, the number trained at once, and `train_seconds` is a run's share. A run that failed has its
    exception there."""
    from kdutils.experiments import packing

    runs = [_module(spec.chapter).stages(spec) for spec in specs]
    packing.together(runs, lambda made: finished({specs[i]: outcome for i, outcome in made.items()}))
