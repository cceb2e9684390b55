"""What chapter 05 shows of its runs: fixed knowledge, luck and its null, replays, slopes. Reads records only."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pandas as pd
from scipy import stats

from kdutils import claims, experiments, figures, tasks
from kdutils.experiments import probes
from kdutils.intervals import Estimate, paired, spread, t_estimate
from kdutils.peakd_page import measured
from kdutils.records import MissingRuns, command_for, ensure, frame, look_up

TYPES = ("FinK", "ResK", "FeaK", "RelK")
RANDOM = ("Random-All", "Random-One")
POLICIES = (*RANDOM, "fixed-seed")
NAMES = {"fixed-seed": "fixed knowledge"}
THIRDS = ("first", "second", "last")
DEV_ROWS = {"rte": 277, "mrpc": 408, "sst2": 872}
PAPER = ("rte", "sst2")  # the tasks of the paper's probes
PAPER_REPEATS = 200


def runs(profile: str, task: str, repeats: int, train: bool) -> figures.Runs:
    """The chapter's runs with at most `repeats` of each random policy and of the null; see `figures.runs`."""
    def specs():
        counted = Counter()
        for spec in experiments.plan(probes.CHAPTER, profile, None if task == "all" else task):
            counted[spec.task, spec.method] += 1
            if spec.method not in POLICIES or counted[spec.task, spec.method] <= repeats:
                yield spec

    found, missing = look_up(specs())
    if missing and train:
        ensure(missing, experiments.run, train=True)
        ensure(specs(), experiments.run, train=True)  # what is replayed is known only now
        found, missing = look_up(specs())
    if not found:
        raise figures.in_one_line(MissingRuns(missing, command_for(missing)))
    return figures.Runs(found, missing, frame(found))


def with_measures(data: pd.DataFrame) -> pd.DataFrame:
    """`measured`, with the columns that only some kinds of runs have."""
    columns = ("knowledge", "weights", "draw", "was")
    return measured(data.reindex(columns=list(dict.fromkeys([*data.columns, *columns]))))


def task_names(data: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(data["task"]))


def show(data: pd.DataFrame, caption: str, digits: int = 1) -> None:
    """`figures.table`, or a line where there are no runs to show."""
    if len(data):
        figures.table(data, caption, digits)
    else:
        print(f"No runs yet for: {caption}")


def text(values: pd.Series) -> str:
    """Mean of fractions in points, half its 95 % interval, n."""
    return figures.plus_minus(*figures.interval(values * 100))


# --------------------------------------------------------------------------------------------------------------- tables


def magnitudes(data: pd.DataFrame) -> pd.DataFrame:
    """The undivided losses of students that learn all four types: mean over the first and the last hundred steps, and
    the share that each would have of an unweighted sum at the start."""
    rows = []
    for name in task_names(data):
        some = data[(data["task"] == name) & (data["knowledge"] == probes.ALL) & (data["method"] == "fixed")]
        if some.empty:
            continue
        sizes = {kind: np.mean(list(some[f"extra_sizes_{kind}"]), axis=0) for kind in TYPES}
        total = sum(first for first, _ in sizes.values())
        rows += [{"task": name, "type": kind, "first steps": f"{first:.2g}", "last steps": f"{last:.2g}",
                  "share at the start": f"{first / total:.1e}"} for kind, (first, last) in sizes.items()]
    return pd.DataFrame(rows)


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


def fixed(data: pd.DataFrame, method: str = "fixed", column: str = "score") -> pd.DataFrame:
    """One row a combination of types, one column a task: mean of `column`, half a 95 % interval, n."""
    some = data[data["method"] == method]
    rows = [{"knowledge": names} | {name: text(part.loc[part["task"] == name, column]) for name in task_names(some)}
            for names in probes.FIXED if len(part := some[some["knowledge"] == names])]
    return pd.DataFrame(rows)


def marks(data: pd.DataFrame) -> str:
    """What the teacher and a constant answer score, in one sentence."""
    said = [f"{name}: teacher {part['teacher'].mean() * 100:.1f}, constant answer {part['majority'].mean() * 100:.1f}"
            for name, part in data.groupby("task", sort=False)]
    return "; ".join(said)


def heads(data: pd.DataFrame) -> pd.DataFrame:
    """Students that learn one type only, with a head of their own and with the teacher's."""
    rows = []
    for name in task_names(data):
        for names in ("FeaK", "RelK"):
            part = data[(data["task"] == name) & (data["knowledge"] == names)]
            if part.empty:
                continue
            score = {label: text(part.loc[part["method"] == method, "score"])
                     for label, method in (("fresh head", "fixed"), ("teacher's head", "teacher-head"))}
            rows.append({"task": name, "knowledge": names} | score
                        | {"constant answer": f"{part['majority'].mean() * 100:.1f}"})
    return pd.DataFrame(rows)


def luck(data: pd.DataFrame, column: str = "best_dev_accuracy") -> pd.DataFrame:
    """Best and worst run of each policy, in percent of `column`, which is on dev, and their spread; last the range
    expected of as many equals (`best_of`) with the median's accuracy."""
    rows = []
    for name in task_names(data):
        for method in POLICIES:
            values = _of(data, method, name)[column].dropna() * 100
            if len(values):
                size, middle = DEV_ROWS.get(name), values.median()
                low, high = best_of(len(values), size, middle / 100) if size else (math.nan, math.nan)
                rows.append({"task": name, "policy": NAMES.get(method, method), "n": len(values), "best": values.max(),
                             "median": middle, "worst": values.min(), "range": values.max() - values.min(),
                             "sd": values.std() if len(values) > 1 else math.nan,
                             "range of equals": (high - low) * 100})
    return pd.DataFrame(rows)


def _of(data: pd.DataFrame, method: str, task: str) -> pd.DataFrame:
    return data[(data["task"] == task) & (data["method"] == method)]


def best_of(runs: int, rows: int, accuracy: float) -> tuple[float, float]:
    """Expected worst and best score, as fractions, of `runs` students that are all right with probability `accuracy` on
    each of `rows` rows, independently: order statistics of the binomial."""
    below = stats.binom.cdf(np.arange(rows), rows, accuracy)  # P(at most k right), k < rows
    return float(((1 - below) ** runs).sum() / rows), float((1 - below**runs).sum() / rows)


def paper_luck() -> pd.DataFrame:
    """The paper's ranges beside those of 200 equally good students, each scored on rows of its own."""
    cells = claims.published().query("table == 'ksm-2'").set_index(["row", "task", "metric"])["value"]
    rows = []
    for name in PAPER:
        for method in RANDOM:
            top, bottom = (cells[method, name, end] for end in ("best", "worst"))
            worst, best = best_of(PAPER_REPEATS, DEV_ROWS[name], (top + bottom) / 200)
            rows.append({"task": name, "policy": method, "the paper: worst": bottom, "best": top, "range": top - bottom,
                         "equal students: worst": worst * 100, "best ": best * 100, "range ": (best - worst) * 100})
    return pd.DataFrame(rows)


def spreads(data: pd.DataFrame) -> pd.DataFrame:
    """Mean distance of runs from their median: each random policy against the null, in points of the score."""
    rows = []
    for name in task_names(data):
        null = _of(data, "fixed-seed", name)["score"].dropna() * 100
        for method in RANDOM:
            values = _of(data, method, name)["score"].dropna() * 100
            found = spread(values, null)
            half = found["high"] - found["effect"]
            rows.append({"task": name, "policy": method, "n": f"{len(values)} and {len(null)}",
                         "sd": values.std(), "sd, seeds alone": null.std(),
                         "further from the median": figures.plus_minus(found["effect"], half, found["n"], sign=True)})
    return pd.DataFrame([row for row in rows if row["n"] != "0 and 0"])


def replayed(data: pd.DataFrame) -> pd.DataFrame:
    """The replayed sequences: their first run's best epoch on dev, the same of the replays, and the replays' score; the
    group's means over replays, with the sequences' number."""
    rows = []
    for name in task_names(data):
        again, first = _of(data, "replay", name), _of(data, "Random-All", name)
        for was in ("best", "middle"):
            some = again[again["was"] == was]
            if len(some):
                once = first[first["draw"].isin(some["draw"])]
                rows.append({
                    "task": name, "sequences": f"{was} {some['draw'].nunique()}",
                    "first time, dev": once["paper"].mean() * 100,
                    "replayed, dev": text(some["paper"]),
                    "first time": once["score"].mean() * 100,
                    "replayed": text(some["score"]),
                    "all random runs": first["score"].mean() * 100})
    return pd.DataFrame(rows)


def stays_lucky(data: pd.DataFrame, task: str) -> Estimate:
    """Best sequences less middle ones, replayed: points of the score, paired by fresh seed."""
    again = _of(data, "replay", task)
    by = {was: again[again["was"] == was].groupby("seed")["score"].mean() for was in ("best", "middle")}
    return paired(((by["best"] - by["middle"]) * 100).dropna())


# ----------------------------------------------------------------------------------------------------------------- when


def shares(data: pd.DataFrame) -> pd.DataFrame:
    """One row a run: the share of steps at which each type was chosen, in columns such as ("FinK", "first")."""
    return pd.DataFrame({(kind, third): [one[i] for one in data[f"extra_chosen_{kind}"]]
                         for kind in TYPES for i, third in enumerate(THIRDS)}, index=data.index)


def regression(data: pd.DataFrame, task: str, by: str = "third") -> dict[str, Estimate]:
    """Least squares of Random-All's scores (points) on how often each type was chosen: what choosing it at one step in
    ten more adds. By "third" of training (twelve slopes) or over "all" of it (four); empty with too few runs."""
    some = _of(data, "Random-All", task).dropna(subset="score")
    if some.empty:
        return {}
    x = shares(some)
    if by == "all":
        x = x.T.groupby(level=0, sort=False).mean().T
        x.columns = [(kind, "") for kind in x.columns]
    design = np.column_stack([np.ones(len(x)), x.to_numpy() - x.to_numpy().mean(0)])
    df = len(x) - design.shape[1]
    if df < 3 or np.linalg.matrix_rank(design) < design.shape[1]:
        return {}
    slopes, residual, *_ = np.linalg.lstsq(design, some["score"].to_numpy() * 100, rcond=None)
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * residual.sum() / df)
    return {f"{kind} {third}".strip(): t_estimate(b / 10, se / 10, df, len(x))
            for (kind, third), b, se in zip(x.columns, slopes[1:], errors[1:], strict=True)}


def explained(data: pd.DataFrame, task: str) -> float:
    """Share of the variance of Random-All's scores that the twelve shares explain, adjusted for their number."""
    some = _of(data, "Random-All", task).dropna(subset="score")
    if len(some) < 16:
        return math.nan
    x, y = shares(some).to_numpy(), some["score"].to_numpy()
    design = np.column_stack([np.ones(len(x)), x])
    left = ((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2).sum()
    return 1 - left / (len(y) - design.shape[1]) / y.var(ddof=1)


def whole(data: pd.DataFrame) -> pd.DataFrame:
    """The slopes over all of training, and what the twelve shares explain."""
    rows = [{"task": name, "type": kind,
             "one step in ten more": figures.plus_minus(e["effect"], e["high"] - e["effect"], e["n"], 2, sign=True),
             "variance explained": f"{explained(data, name):.0%}"}
            for name in task_names(data) for kind, e in regression(data, name, by="all").items()]
    return pd.DataFrame(rows, columns=["task", "type", "one step in ten more", "variance explained"])


# -------------------------------------------------------------------------------------------------------------- figures


def distributions(data: pd.DataFrame):
    """A panel a task: every run of each policy, with the mean and its interval."""
    names = [name for name in task_names(data) if len(data[(data["task"] == name) & data["method"].isin(POLICIES)])]
    fig, axes = figures.panels(1, max(len(names), 1), height=1.9)
    for ax, name in zip(axes, names, strict=False):
        some = data[(data["task"] == name) & data["method"].isin(POLICIES)].replace({"method": NAMES})
        order = [NAMES.get(m, m) for m in POLICIES if NAMES.get(m, m) in set(some["method"])]
        figures.dots(ax, some, "score", "method", order)
        ax.set(xlabel=f"{name}: {tasks.get(name).verdict_metric}, points")
    return fig if names else _nothing(fig, "no runs yet")


def _nothing(fig, why: str):
    for ax in fig.axes:
        ax.set_axis_off()
        ax.text(0.5, 0.5, why, ha="center", va="center", transform=ax.transAxes)
    return fig


def distributions_in_words(data: pd.DataFrame) -> str:
    said = []
    for name in task_names(data):
        for method in POLICIES:
            values = _of(data, method, name)["score"].dropna() * 100
            if len(values):
                said.append(f"{name}, {NAMES.get(method, method)}: {values.min():.1f} to {values.max():.1f}, "
                            f"mean {values.mean():.1f}")
    return "Scores of every run by policy. " + ("; ".join(said) or "No runs yet.")


def slopes(found: dict[str, dict[str, Estimate]]):
    """A panel a task: the regression's slopes with their intervals."""
    there = {name: estimates for name, estimates in found.items() if estimates}
    fig, axes = figures.panels(max(len(there), 1), height=3.6)
    for ax, (name, estimates) in zip(axes, there.items(), strict=False):
        figures.forest(ax, estimates, estimates.values())
        ax.set(title=name, xlabel="points for one step in ten more")
    return fig if there else _nothing(fig, "too few runs")


def slopes_in_words(found: dict[str, dict[str, Estimate]]) -> str:
    said = [f"{name}, {label}: {e['effect']:+.2f}" for name, some in found.items() for label, e in some.items()]
    return "Points gained when a type is chosen at one step in ten more. " + ("; ".join(said) or "Too few runs.")
