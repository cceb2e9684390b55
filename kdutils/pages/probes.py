"""What chapter 05 shows of its runs: fixed knowledge, halves, slopes; for luck see `pages.luck`. Reads records."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd

from kdutils import figures, tables, tasks, verdicts
from kdutils.experiments import probes
from kdutils.intervals import Estimate, t_estimate
from kdutils.tables import clear, compared, readable, said, task_names, text

TYPES = ("FinK", "ResK", "FeaK", "RelK")
RANDOM = ("Random-All", "Random-One")
POLICIES = (*RANDOM, "fixed-seed")
THIRDS = ("first", "second", "last")
# Methods as readers know them (see `called`); where there is nothing here, by their own name.
NAMES = {"fixed-seed": "seeds alone", "teacher-head": "teacher's head"}
DEPTH = re.compile(r"(.+?)(?:-(\d+)L)?")
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


# ----------------------------------------------------------------------------------------------------------------- runs


def runs(profile: str, task: str, repeats: int, train: bool) -> figures.Runs:
    """The chapter's runs with at most `repeats` of each random policy and of the null; see `figures.runs`."""
    def first(specs):
        counted = Counter()
        for spec in specs:
            counted[spec.task, spec.method] += 1
            if spec.method not in POLICIES or counted[spec.task, spec.method] <= repeats:
                yield spec

    return figures.runs(probes.CHAPTER, profile, task, train, first)


def measured(frame: pd.DataFrame) -> pd.DataFrame:
    """`tables.measured` and three columns more. `dev`: the verdict's metric on dev; `unseen`: the same on rows that
    ranked nothing, test where there is one and else held-out rows. `paper`: accuracy on dev, the paper's measure, at
    the best epoch; at the last one where the best is that of F1 (MRPC, QQP), by which a constant answer does well.
    """
    made = tables.measured(frame, ("knowledge", "weights", "draw", "was", "layers"), dev="dev_{score}",
                           test="test_{score}", last="dev_accuracy", best="best_dev_accuracy")
    return made.assign(unseen=made["test"].fillna(made["held"]), paper=papers_accuracy(made))


def papers_accuracy(made: pd.DataFrame) -> pd.Series:
    """Accuracy on dev, `best` at the best epoch; `last`, at the last one, where the best is that of F1."""
    first = made["task"].map(lambda name: tasks.get(name).metrics[0])
    return made["best"].where(first == "accuracy", made["last"])


def scores(data: pd.DataFrame, method: str, task: str, column: str = "score") -> pd.Series:
    """`column` of the runs of a method on a task that have it, in points."""
    return of(data, method, task)[column].dropna() * 100


def called(method: str, names: dict[str, str] = NAMES) -> str:
    """A method as readers know it, and the depth of its students where that is part of its name."""
    name, layers = DEPTH.fullmatch(method).groups()
    return names.get(name, name) + (f", {layers} layers" if layers else "")


def counts(data: pd.DataFrame, called: Callable[[str], str] = called) -> pd.DataFrame:
    """How many runs of each method there are on each task."""
    made = data.groupby(["method", "task"], sort=False).size().unstack("task", fill_value=0)
    return made.rename(called).reset_index()


def of(data: pd.DataFrame, method: str, task: str) -> pd.DataFrame:
    return data[(data["task"] == task) & (data["method"] == method)]


# --------------------------------------------------------------------------------------------------------------- tables


def magnitudes(data: pd.DataFrame) -> pd.DataFrame:
    """The undivided losses of students that learn all four types: mean over the first and the last hundred steps, and
    the share that each would have of an unweighted sum at the start."""
    rows = []
    for name in task_names(data):
        some = of(data, "fixed", name).query("knowledge == @probes.ALL")
        if some.empty:
            continue
        sizes = {kind: np.mean(list(some[f"extra_sizes_{kind}"]), axis=0) for kind in TYPES}
        total = sum(first for first, _ in sizes.values())
        rows += [{"task": name, "type": kind, "first steps": size(first), "last steps": size(last),
                  "share at the start": size(first / total)} for kind, (first, last) in sizes.items()]
    return pd.DataFrame(rows)


def size(value: float) -> str:
    """A number of any size in two digits: 1.4, 0.039, 2.0 × 10⁻⁷."""
    digits, power = f"{value:.1e}".split("e")
    small = int(power) < -3
    return f"{digits} × 10{str(int(power)).translate(RAISED)}" if small else f"{value:.{max(0, 1 - int(power))}f}"


def trials(data: pd.DataFrame) -> pd.DataFrame:
    """The weights that were tried and their held-out scores."""
    found = data[data["method"] == "tuning"].assign(tried=lambda t: t["weights"].map(str))
    rows = []
    for (name, _), some in found.groupby(["task", "tried"], sort=False):
        weights = dict(zip(TYPES, some["weights"].iloc[0], strict=True))
        taken = probes.WEIGHTS.get((some["profile"].iloc[0], name), (1.0,) * 4)
        rows.append({"task": name} | weights | {"held-out score": text(some["held"]),
                                                "taken": "yes" if list(weights.values()) == list(taken) else ""})
    return pd.DataFrame(rows)


def fixed(data: pd.DataFrame, column: str = "score", deeper: bool = False) -> pd.DataFrame:
    """One row a combination of types, one column a task (see `compared`): mean of `column`, half a 95 % interval, n.
    With `deeper`, students of each task's second depth, which is in the column's name."""
    some = data[data["layers"].notna() if deeper else data["method"] == "fixed"]
    pairs = some[["task", "layers"]].to_numpy()
    labels = [f"{task}, {layers:.0f} layers" if deeper else task for task, layers in pairs]
    name = pd.Series(labels, some.index, dtype=object)
    rows = [{"knowledge": names} | {label: text(some.loc[(name == label) & here, column]) for label in name.unique()}
            for names in probes.FIXED if (here := some["knowledge"] == names).any()]
    made = compared(pd.DataFrame(rows), "knowledge") if rows else pd.DataFrame()
    return made[(made != figures.DASH).sum(axis=1) > 1]


def marks(data: pd.DataFrame) -> str:
    """What the teacher and a constant answer score, in one sentence; trials of weights may have had another teacher."""
    taught = data[data["method"] != "tuning"]
    found = {name: tables.marks(part).items() for name, part in taught.groupby("task", sort=False)}
    return "; ".join(f"{name}: {', '.join(' '.join(pair) for pair in of)}" for name, of in found.items())


def heads(data: pd.DataFrame) -> pd.DataFrame:
    """Students that learn one type only, with a head of their own and with the teacher's."""
    rows = []
    for name in task_names(data):
        for names in ("FeaK", "RelK"):
            part = data[(data["task"] == name) & (data["knowledge"] == names)
                        & data["method"].isin(["fixed", "teacher-head"])]
            if part.empty:
                continue
            found = {label: text(part.loc[part["method"] == method, "score"])
                     for label, method in (("fresh head", "fixed"), ("teacher's head", "teacher-head"))}
            rows.append({"task": name, "knowledge": names} | found
                        | {"constant answer": tables.marks(part)["constant answer"]})
    return pd.DataFrame(rows)


def heads_in_words(data: pd.DataFrame) -> str:
    """What students with the teacher's head score, and in how many runs that is exactly a constant answer's score."""
    told = []
    for (name, kind), some in data[data["method"] == "teacher-head"].groupby(["task", "knowledge"], sort=False):
        same = np.isclose(some["score"], some["majority"]).sum()
        told.append(f"{kind} under the teacher's head scores {some['score'].mean() * 100:.1f} on {name} (the teacher "
                    f"{some['teacher'].mean() * 100:.1f})"
                    + (f", which in {same} of {len(some)} runs is exactly the constant answer" if same else ""))
    return "; ".join(told)


# ----------------------------------------------------------------------------------------------------------------- when


def shares(data: pd.DataFrame) -> pd.DataFrame:
    """One row a run: the share of steps at which each type was chosen, in columns such as ("FinK", "first")."""
    return pd.DataFrame({(kind, third): [one[i] for one in data[f"extra_chosen_{kind}"]]
                         for kind in TYPES for i, third in enumerate(THIRDS)}, index=data.index)


def halves(data: pd.DataFrame) -> pd.DataFrame:
    """Students that learn a type in one half of training only, and all other types throughout: scores, and the second
    half minus the first, paired by seed; beside them those that learn all types throughout."""
    rows = []
    for name, kind, early, late in _halves(data):
        whole = of(data, "fixed", name).query("knowledge == @probes.ALL")
        rows.append({"task": name, "type": kind, "first half only": text(early["score"]),
                     "second half only": text(late["score"]), "throughout": text(whole["score"]),
                     "late minus early": said(tables.versus(late, early))})
    return pd.DataFrame(rows)


def halves_that_differ(data: pd.DataFrame) -> str:
    """Of how many late minus early differences that have five seeds the interval excludes zero, in one sentence; empty
    where none has."""
    found = [tables.versus(late, early) for *_, early, late in _halves(data)]
    known = [e for e in found if e["n"] >= verdicts.FEWEST]
    if not known:
        return ""
    return (f"of the {len(known)} differences in the last column that have five seeds, {sum(map(clear, known))} "
            "have an interval that excludes zero, where chance alone would make it one in twenty")


def _halves(data: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """Task, type, and its runs early and late, where there are any."""
    some = data[data["method"].isin(["early", "late"])]
    groups = {(name, kind): part for (name, kind), part in some.groupby(["task", "knowledge"], sort=False)}
    return [(name, kind, of(part, "early", name), of(part, "late", name))
            for name in task_names(some) for kind in TYPES if (part := groups.get((name, kind))) is not None]


def regression(data: pd.DataFrame, task: str, by: str = "third") -> dict[str, Estimate]:
    """Least squares of Random-All's scores (points) on how often each type was chosen: what choosing it at one step in
    ten more adds. By "third" of training (twelve slopes) or over "all" of it (four); empty with too few runs."""
    some = of(data, "Random-All", task).dropna(subset="score")
    if some.empty:
        return {}
    x = shares(some)
    if by == "all":
        x = x.T.groupby(level=0, sort=False).mean().T
        x.columns = [(kind, "") for kind in x.columns]
    design, slopes, variance = _least_squares(x, some["score"] * 100)
    df = len(x) - design.shape[1]
    if df < 3 or np.linalg.matrix_rank(design) < design.shape[1]:
        return {}
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * variance)
    return {f"{kind} {third}".strip(): t_estimate(b / 10, se / 10, df, len(x))
            for (kind, third), b, se in zip(x.columns, slopes[1:], errors[1:], strict=True)}


def _least_squares(x: pd.DataFrame, y: pd.Series) -> tuple[np.ndarray, np.ndarray, float]:
    """The design (a constant and the centred columns), its coefficients, and the residuals' variance (NaN where there
    are no more rows than coefficients)."""
    design = np.column_stack([np.ones(len(x)), x - x.mean()])
    found = np.linalg.lstsq(design, y.to_numpy(), rcond=None)[0]
    df = len(x) - design.shape[1]
    return design, found, ((y - design @ found) ** 2).sum() / df if df > 0 else math.nan


def explained(data: pd.DataFrame, task: str) -> float:
    """Share of the variance of Random-All's scores that the twelve shares explain, adjusted for their number."""
    some = of(data, "Random-All", task).dropna(subset="score")
    return math.nan if len(some) < 16 else 1 - _least_squares(shares(some), some["score"])[2] / some["score"].var()


def whole(data: pd.DataFrame) -> pd.DataFrame:
    """The slopes over all of training."""
    rows = [{"task": name, "type": kind, "one step in ten more": said(e, 2)}
            for name in task_names(data) for kind, e in regression(data, name, by="all").items()]
    return pd.DataFrame(rows, columns=["task", "type", "one step in ten more"])


def explained_in_words(data: pd.DataFrame) -> str:
    """What the twelve shares explain on each task that has runs enough."""
    found = {name: explained(data, name) for name in task_names(data)}
    return "; ".join(f"on {name} adjusted R² is {figures.number(part, 2)}: the twelve shares explain "
                     + (f"{100 * part:.0f} % of the variance between runs" if part > 0 else "nothing beyond chance")
                     for name, part in found.items() if not math.isnan(part))


# -------------------------------------------------------------------------------------------------------------- figures


def slopes(found: dict[str, dict[str, Estimate]]):
    """A panel a task: the regression's slopes with their intervals."""
    there = {name: estimates for name, estimates in found.items() if estimates}
    if not there:
        return figures.placeholder("too few runs")
    fig, axes = figures.panels(len(there), height=3.6)
    for ax, (name, estimates) in zip(axes, there.items(), strict=True):
        figures.forest(ax, estimates)
        ax.set(title=readable(name), xlabel="points")
    return fig


def slopes_in_words(found: dict[str, dict[str, Estimate]]) -> str:
    parts = [f"{name}, {label}: {e['effect']:+.2f}" for name, some in found.items() for label, e in some.items()]
    return tables.listed("Points gained when a type is chosen at one step in ten more.", parts, "Too few runs.")
