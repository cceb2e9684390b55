"""A notebook's parameters and the environment's KDUTILS_GLUE, checked before any work: each mistake ends the run with
one clear line.

papermill reads `-p train false` as the text "false", which counts as true, and `-p profile None` as no value; YAML
reads 1e-4 as text; and a parameter that the notebook does not have is injected all the same, with only a warning, even
where its name is IPython's or that of a module which the notebook imports later.
"""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdutils import profiles, tasks


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
          train: Any = ABSENT, **declared: type | tuple | range) -> None:
    """Stop with one line where a notebook's parameters are wrong. Called right after the parameters' cell and before
    any other import, whose names would hide unknown parameters of the same name:

        params.check(globals(), "02_stark", profile=profile, task=task, train=train, seeds=int)

    A parameter beside those three is declared by its type (`Positive`: a float above 0), by a tuple of its allowed
    values or by a `range` of whole numbers; of the three, a notebook that lacks one leaves it out. Numbers must be
    finite. Names that papermill assigned, and public plain values in `namespace`, are parameters that this notebook
    does not have where they are not declared. Raises BadParameter.
    """
    common = {"task": (task, str), "train": (train, bool)}
    common = {name: given for name, given in common.items() if given[0] is not ABSENT}
    allowed = (*(["profile"] if profile is not ABSENT else []), *common, *declared)
    plain = (str, int, float, bool, list, tuple, dict, type(None))
    found = [name for name, value in namespace.items()
             if name not in NOT_OURS and not name.startswith("_") and isinstance(value, plain)]
    for name in (*_injected(namespace), *found):
        if name not in allowed:
            raise BadParameter(f"{name}: unknown parameter; allowed: {', '.join(allowed)}")
    if profile is not ABSENT and (not isinstance(profile, str) or profile not in profiles.PROFILES):
        raise BadParameter(f"profile: got {profile!r}; allowed: {', '.join(profiles.PROFILES)}")
    for name, given in common.items():
        _typed(name, *given)
    for name, wanted in declared.items():
        _typed(name, namespace[name], wanted)
    if profile is not ABSENT:
        _planned(chapter, profile, "all" if task is ABSENT else task)


def _injected(namespace: Mapping[str, Any]) -> list[str]:
    """The names that papermill's cell assigns, by its source, since a notebook's imports may have hidden their values.
    IPython keeps the sources of cells under two names: one is there where the cell assigns to the other."""
    histories = [namespace[name] for name in ("In", "_ih") if isinstance(namespace.get(name), list)]
    cells = [cell for cells in histories for cell in cells if str(cell).startswith("# Parameters\n")]
    tree = ast.parse(cells[-1] if cells else "")  # the last: a reader may have mended the cell and run it again
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _typed(name: str, value: Any, wanted: type | tuple | range) -> None:
    if isinstance(wanted, tuple):
        if value not in wanted:
            raise BadParameter(f"{name}: got {value!r}; allowed: {', '.join(map(repr, wanted))}")
        return
    if isinstance(wanted, range):
        _typed(name, value, int)
        if value not in wanted:
            raise BadParameter(f"{name}: got {value!r}; allowed: whole numbers from {wanted[0]} to {wanted[-1]}")
        return
    if wanted in (int, float, Positive):
        right = _is_number(value) and (isinstance(value, int) or wanted is not int) and (
            value > 0 or wanted is not Positive)
    else:
        right = isinstance(value, wanted)
    if not right:
        kind = "" if value is None else f", {type(value).__name__}"
        raise BadParameter(f"{name}: got {value!r}{kind}; allowed: {WORDS[wanted]}")


def _is_number(value: Any) -> bool:
    """Finite, and no integer beyond the largest float."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _planned(chapter: str, profile: str, task: str) -> None:
    """The chapter must have runs of `task` in `profile`."""
    from kdutils import experiments

    names = profiles.task_names(profile)
    if chapter in experiments.CHAPTERS:
        names = list(dict.fromkeys(spec.task for spec in experiments.plan(chapter, profile)))
    if task not in ("all", *names):
        raise BadParameter(f"task: got {task!r} for profile {profile!r}; allowed: all, {', '.join(names)}")


def glue_source() -> str:
    """Where GLUE is read from: the environment's KDUTILS_GLUE, as a folder from the repository on where there is such a
    folder, else as a hub id; `nyu-mll/glue` without it."""
    from kdutils.store import repository

    told = os.environ.get("KDUTILS_GLUE") or "nyu-mll/glue"
    folder = str(repository() / os.path.expanduser(told))
    return folder if os.path.isdir(folder) else told


def without_glue(task: tasks.Task) -> str:
    """Why GLUE's source has no data for `task`, empty where it may have: a hub id is taken as it is, since asking the
    hub takes a while."""
    source, config = glue_source(), task.name
    if not os.path.isdir(source):
        return "no such folder" if source.startswith(("/", ".", "~")) or source.count("/") > 1 else ""
    return "" if any(path.is_file() for path in Path(source, config).rglob("*")) else f"no data in its folder {config}"


def check_glue(names: Iterable[str]) -> None:
    """Stop with one line where GLUE's source has no data for one of these tasks. Raises BadParameter."""
    for task in map(tasks.get, dict.fromkeys(names)):
        if task.source == "glue" and (why := without_glue(task)):
            raise BadParameter(f"KDUTILS_GLUE: got {glue_source()!r} for task {task.name!r} ({why}); allowed: "
                               "a hub id, or a folder in the hub's layout")
