"""What chapter 05 shows of its runs: fixed knowledge, luck and its null, replays, halves, slopes. Reads records."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pandas as pd
from scipy import stats

from kdutils import claims, figures, tables, tasks, verdicts
from kdutils.experiments import probes
from kdutils.intervals import EMPTY, LEVEL, Estimate, spread, t_estimate
from kdutils.tables import said, task_names, text

TYPES = ("FinK", "ResK", "FeaK", "RelK")
RANDOM = ("Random-All", "Random-One")
POLICIES = (*RANDOM, "fixed-seed")
NAMES = {"fixed-seed": "fixed knowledge"}
THIRDS = ("first", "second", "last")
DEV_ROWS = {"rte": 277, "mrpc": 408, "sst2": 872}
PAPER = ("rte", "sst2")  # the tasks of the paper's probes
PAPER_REPEATS = 200
RESAMPLED = 10  # runs on either side below which no share of a variance is bootstrapped


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
    first = made["task"].map(lambda name: tasks.get(name).metrics[0])
    return made.assign(unseen=made["test"].fillna(made["held"]),
                       paper=made["best"].where(first == "accuracy", made["last"]))


def scores(data: pd.DataFrame, method: str, task: str, column: str = "score") -> pd.Series:
    """`column` of the runs of a method on a task that have it, in points."""
    return _of(data, method, task)[column].dropna() * 100


def _of(data: pd.DataFrame, method: str, task: str) -> pd.DataFrame:
    return data[(data["task"] == task) & (data["method"] == method)]


# --------------------------------------------------------------------------------------------------------------- tables


def magnitudes(data: pd.DataFrame) -> pd.DataFrame:
    """The undivided losses of students that learn all four types: mean over the first and the last hundred steps, and
    the share that each would have of an unweighted sum at the start."""
    rows = []
    for name in task_names(data):
        some = _of(data, "fixed", name).query("knowledge == @probes.ALL")
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


def fixed(data: pd.DataFrame, column: str = "score", deeper: bool = False) -> pd.DataFrame:
    """One row a combination of types, one column a task: mean of `column`, half a 95 % interval, n. With `deeper`,
    students of each task's second depth, which is in the column's name."""
    some = data[data["layers"].notna() if deeper else data["method"] == "fixed"]
    pairs = some[["task", "layers"]].to_numpy()
    labels = [f"{task}, {layers:.0f} layers" if deeper else task for task, layers in pairs]
    name = pd.Series(labels, some.index, dtype=object)
    rows = [{"knowledge": names} | {label: text(some.loc[(name == label) & here, column]) for label in name.unique()}
            for names in probes.FIXED if (here := some["knowledge"] == names).any()]
    return pd.DataFrame(rows)


def marks(data: pd.DataFrame) -> str:
    """What the teacher and a constant answer score, in one sentence."""
    found = {name: tables.marks(part).items() for name, part in data.groupby("task", sort=False)}
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


def luck(data: pd.DataFrame) -> pd.DataFrame:
    """Best and worst run of each policy by the paper's measure (see `measured`), in percent, and their spread; last
    the range expected of as many equals (`best_of`) with the median's accuracy."""
    rows = []
    for name in task_names(data):
        for method in POLICIES:
            values = scores(data, method, name, "paper")
            if len(values):
                size, middle = DEV_ROWS.get(name), values.median()
                low, high = best_of(len(values), size, middle / 100) if size else (math.nan, math.nan)
                rows.append({"task": name, "policy": NAMES.get(method, method), "n": len(values), "best": values.max(),
                             "median": middle, "worst": values.min(), "range": values.max() - values.min(),
                             "sd": values.std(), "range of equals": (high - low) * 100})
    return pd.DataFrame(rows)


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
    """Mean distance of runs from their median: each random policy against the null, in points of the score; and the
    share of a policy's variance that the null has not (see `beyond`)."""
    rows = []
    for name in task_names(data):
        null = scores(data, "fixed-seed", name)
        for method in RANDOM:
            values = scores(data, method, name)
            rows.append({"task": name, "policy": method, "n": f"{len(values)} and {len(null)}",
                         "sd": values.std(), "sd, seeds alone": null.std(),
                         "further from the median": said(spread(values, null)),
                         "variance from selection, %": _range(beyond(values, null))})
    return pd.DataFrame([row for row in rows if row["n"] != "0 and 0"])


def beyond(values: pd.Series, null: pd.Series) -> Estimate:
    """How much of a policy's variance is selection's: 1 - var(null) / var(values), in percent, with a bootstrapped 95 %
    interval (BCa; runs that collapse make scores far from normal). Negative where the null is wider. Of fewer than
    `RESAMPLED` runs some resamples are all one run, and have no variance to divide by: nothing is said."""
    def share(a, b, axis=-1):
        return 100 * (1 - b.var(axis=axis, ddof=1) / a.var(axis=axis, ddof=1))

    values, null = values.to_numpy(), null.to_numpy()
    n = min(len(values), len(null))
    if n < RESAMPLED or min(np.ptp(values), np.ptp(null)) == 0:
        return EMPTY | {"n": n}
    ends = stats.bootstrap((values, null), share, confidence_level=LEVEL, random_state=np.random.default_rng(0))
    low, high = ends.confidence_interval
    return EMPTY | {"effect": share(values, null), "low": low, "high": high, "n": n}


def _range(estimate: Estimate) -> str:
    """An estimate whose interval need not be symmetric."""
    effect, low, high = (figures.number(estimate[name], 0) for name in ("effect", "low", "high"))
    return figures.DASH if effect == figures.DASH else f"{effect} [{low}, {high}]"


def replayed(data: pd.DataFrame) -> pd.DataFrame:
    """The replayed sequences: mean score of their first runs and of the replays, on dev, by which they were ranked, and
    on rows that ranked nothing; last the mean of all random runs there."""
    rows = []
    for name in task_names(data):
        again, first = _of(data, "replay", name), _of(data, "Random-All", name)
        for was in ("best", "middle"):
            some = again[again["was"] == was]
            if len(some):
                once = first[first["draw"].isin(some["draw"])]
                rows.append({
                    "task": name, "sequences": f"{was} {some['draw'].nunique()}",
                    "first time, dev": once["dev"].mean() * 100,
                    "replayed, dev": text(some["dev"]),
                    "unseen rows": "test" if some["test"].notna().all() else "held-out",
                    "first time": once["unseen"].mean() * 100,
                    "replayed": text(some["unseen"]),
                    "all random runs": first["unseen"].mean() * 100})
    return pd.DataFrame(rows)


def stays_lucky(data: pd.DataFrame, task: str) -> Estimate:
    """Best sequences less middle ones, replayed: points on rows that ranked nothing, paired by fresh seed."""
    means = _of(data, "replay", task).groupby(["was", "seed"], as_index=False)["unseen"].mean()
    return tables.versus(*(means[means["was"] == was] for was in ("best", "middle")), "unseen")


def sequences(data: pd.DataFrame) -> pd.DataFrame:
    """Replays on rows that ranked nothing: standard deviations, in points, between sequences and between the seeds of
    one sequence, and the sequences' share of the two variances, in percent.

    Every sequence has the same seeds, so that the analysis of variance has two ways: what the seeds have in common is
    taken out of the differences between sequences, and counted within them. The share's interval is F's.
    """
    rows = []
    for name in task_names(data):
        again = _of(data, "replay", name)
        table = again.pivot_table(index="seed", columns="draw", values="unseen").dropna() * 100
        seeds, count = table.shape
        if min(seeds, count) < 2:
            continue
        rest = table - table.mean() - table.mean(axis=1).to_numpy()[:, None] + table.to_numpy().mean()
        df = count - 1, (count - 1) * (seeds - 1)
        error = (rest**2).to_numpy().sum() / df[1]
        ratio, within = seeds * table.mean().var() / error, table.var().mean()
        cuts = np.array([1, *stats.f.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], *df)])
        between = np.maximum(ratio / cuts - 1, 0) * error / seeds
        effect, low, high = 100 * between / (between + within)
        rows.append({"task": name, "sequences": count, "seeds": seeds, "sd between sequences": math.sqrt(between[0]),
                     "sd within one": math.sqrt(within),
                     "variance from sequences, %": _range({"effect": effect, "low": low, "high": high})})
    return pd.DataFrame(rows)


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
        whole = _of(data, "fixed", name).query("knowledge == @probes.ALL")
        rows.append({"task": name, "type": kind, "first half only": text(early["score"]),
                     "second half only": text(late["score"]), "throughout": text(whole["score"]),
                     "late minus early": said(tables.versus(late, early))})
    return pd.DataFrame(rows)


def halves_that_differ(data: pd.DataFrame) -> str:
    """Of how many late minus early differences the interval excludes zero, such as "1 of 8"."""
    found = [tables.versus(late, early) for *_, early, late in _halves(data)]
    known = [e for e in found if e["n"] >= verdicts.FEWEST]
    return f"{sum(e['low'] > 0 or e['high'] < 0 for e in known)} of {len(known)}"


def _halves(data: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """Task, type, and its runs early and late, where there are any."""
    some = data[data["method"].isin(["early", "late"])]
    groups = {(name, kind): part for (name, kind), part in some.groupby(["task", "knowledge"], sort=False)}
    return [(name, kind, _of(part, "early", name), _of(part, "late", name))
            for name in task_names(some) for kind in TYPES if (part := groups.get((name, kind))) is not None]


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
    some = _of(data, "Random-All", task).dropna(subset="score")
    return math.nan if len(some) < 16 else 1 - _least_squares(shares(some), some["score"])[2] / some["score"].var()


def whole(data: pd.DataFrame) -> pd.DataFrame:
    """The slopes over all of training, and what the twelve shares explain."""
    rows = [{"task": name, "type": kind,
             "one step in ten more": said(e, 2), "variance explained": f"{explained(data, name):.0%}"}
            for name in task_names(data) for kind, e in regression(data, name, by="all").items()]
    return pd.DataFrame(rows, columns=["task", "type", "one step in ten more", "variance explained"])


# -------------------------------------------------------------------------------------------------------------- figures


def distributions(data: pd.DataFrame):
    """A panel a task: every run of each policy, with the mean and its interval."""
    some = data[data["method"].isin(POLICIES)].replace({"method": NAMES})
    if some.empty:
        return figures.placeholder()
    fig, axes = figures.panels(1, some["task"].nunique(), height=1.9)
    for ax, (name, part) in zip(axes, some.groupby("task", sort=False), strict=True):
        order = [NAMES.get(m, m) for m in POLICIES if NAMES.get(m, m) in set(part["method"])]
        figures.dots(ax, part, "score", "method", order)
        ax.set(xlabel=f"{name}: {tasks.get(name).verdict_metric}, points")
    return fig


def distributions_in_words(data: pd.DataFrame) -> str:
    found = {f"{name}, {NAMES.get(method, method)}": scores(data, method, name)
             for name in task_names(data) for method in POLICIES}
    return tables.listed("Scores of every run by policy.",
                         [f"{label}: {values.min():.1f} to {values.max():.1f}, mean {values.mean():.1f}"
                          for label, values in found.items() if len(values)])


def slopes(found: dict[str, dict[str, Estimate]]):
    """A panel a task: the regression's slopes with their intervals."""
    there = {name: estimates for name, estimates in found.items() if estimates}
    if not there:
        return figures.placeholder("too few runs")
    fig, axes = figures.panels(len(there), height=3.6)
    for ax, (name, estimates) in zip(axes, there.items(), strict=True):
        figures.forest(ax, estimates)
        ax.set(title=name, xlabel="points for one step in ten more")
    return fig


def slopes_in_words(found: dict[str, dict[str, Estimate]]) -> str:
    parts = [f"{name}, {label}: {e['effect']:+.2f}" for name, some in found.items() for label, e in some.items()]
    return tables.listed("Points gained when a type is chosen at one step in ten more.", parts, "Too few runs.")
