"""A notebook's parameters, checked before any work: each mistake ends the run with one clear line.

papermill reads `-p train false` as the text "false", which counts as true, and `-p profile None` as no value; YAML
reads 1e-4 as text; and a parameter that the notebook does not have is injected all the same, with only a warning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class Positive(float):
    """Declares a number above 0."""


WORDS = {bool: "True or False, with a capital", int: "a whole number", float: "a number (YAML: 1.0e-4)", str: "text",
         Positive: "a number above 0 (YAML: 1.0e-4)"}
ABSENT = object()  # stands for a parameter that a notebook does not have; None is a value, if never an allowed one
NOT_OURS = ("In", "Out", "exit", "quit", "open", "get_ipython")  # IPython puts these into every notebook


class BadParameter(ValueError):
    """A parameter that the notebook cannot use; a notebook shows the message alone."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def in_one_line(error: Exception) -> Exception:
    """`error`, which notebooks will show by its message alone, without the way it came."""
    error._render_traceback_ = lambda: [f"{type(error).__name__}: {error}"]
    return error


def check(namespace: Mapping[str, Any], chapter: str, *, profile: Any = ABSENT, task: Any = ABSENT,
          train: Any = ABSENT, **declared: type | tuple) -> None:
    """Stop with one line where a notebook's parameters are wrong. Called right after the parameters' cell:

        params.check(globals(), "02_stark", profile=profile, task=task, train=train, seeds=int)

    A parameter beside those three is declared by its type (`Positive`: a float above 0) or by a tuple of its allowed
    values; of the three, a notebook that lacks one leaves it out. Numbers must be finite. Public plain values in
    `namespace` that are not declared are parameters that this notebook does not have. Raises BadParameter.
    """
    common = {"profile": (profile, str), "task": (task, str), "train": (train, bool)}
    common = {name: given for name, given in common.items() if given[0] is not ABSENT}
    allowed = (*common, *declared)
    plain = (str, int, float, bool, list, tuple, dict, type(None))
    for name, value in namespace.items():
        if name not in (*allowed, *NOT_OURS) and not name.startswith("_") and isinstance(value, plain):
            raise BadParameter(f"{name}: unknown parameter; allowed: {', '.join(allowed)}")
    for name, given in common.items():
        _typed(name, *given)
    for name, wanted in declared.items():
        _typed(name, namespace[name], wanted)
    if profile is not ABSENT:
        _planned(chapter, profile, "all" if task is ABSENT else task)


def _typed(name: str, value: Any, wanted: type | tuple) -> None:
    if isinstance(wanted, tuple):
        if value not in wanted:
            raise BadParameter(f"{name}: got {value!r}; allowed: {', '.join(map(repr, wanted))}")
        return
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if wanted in (float, Positive):
        right = number and (wanted is float or value > 0)
    else:
        right = number and isinstance(value, int) if wanted is int else isinstance(value, wanted)
    if not right:
        kind = "" if value is None else f", {type(value).__name__}"
        raise BadParameter(f"{name}: got {value!r}{kind}; allowed: {WORDS[wanted]}")


def _planned(chapter: str, profile: str, task: str) -> None:
    """`profile` must exist and the chapter must have runs of `task` in it."""
    from kdutils import experiments, profiles

    try:
        names = profiles.task_names(profile)
    except ValueError as error:
        raise BadParameter(str(error)) from None
    if chapter in experiments.CHAPTERS:
        names = list(dict.fromkeys(spec.task for spec in experiments.plan(chapter, profile)))
    if task not in ("all", *names):
        raise BadParameter(f"task: got {task!r} for profile {profile!r}; allowed: all, {', '.join(names)}")
