"""What chapter 05 shows of luck: the random policies' spread beside seeds alone, and replays of lucky sequences. Reads
records."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from kdutils import claims, figures, tables, tasks
from kdutils.intervals import EMPTY, LEVEL, Estimate, spread
from kdutils.pages.probes import NAMES, POLICIES, RANDOM, called, of, scores
from kdutils.tables import readable, said, task_names, text

DEV_ROWS = {"rte": 277, "mrpc": 408, "sst2": 872}
PAPER = ("rte", "sst2")  # the tasks of the paper's probes
PAPER_REPEATS = 200
RESAMPLED = 10  # runs on either side below which no share of a variance is bootstrapped


def ranges(data: pd.DataFrame) -> pd.DataFrame:
    """Best and worst run of each policy by the paper's measure (see `measured`), in percent, and their spread; last
    the range expected of as many equals (`best_of`) with the median's accuracy."""
    rows = []
    for name in task_names(data):
        for method in POLICIES:
            values = scores(data, method, name, "paper")
            if len(values):
                size, middle = DEV_ROWS.get(name), values.median()
                low, high = best_of(len(values), size, middle / 100) if size else (math.nan, math.nan)
                rows.append({"task": name, "policy": called(method), "n": len(values), "best": values.max(),
                             "median": middle, "worst": values.min(), "range": values.max() - values.min(),
                             "sd": values.std(), "range of equals": (high - low) * 100})
    return pd.DataFrame(rows)


def share_of_null(data: pd.DataFrame) -> str:
    """How much of the range that the binomial null expects seeds alone span, as a clause; nothing without runs."""
    table = ranges(data)
    same = table[table["policy"] == NAMES["fixed-seed"]].dropna() if len(table) else table
    parts = [f"{row['range'] / row['range of equals']:.0%}".replace("%", " %") + f" of what this null expects on "
             f"{tasks.title(row['task'])}" for row in same.to_dict("records")]
    return f" (seeds alone span {', '.join(parts)}, in the table of ranges below)" if parts else ""


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
                         "equal students: worst": worst * 100, "equals: best": best * 100,
                         "equals: range": (best - worst) * 100})
    return pd.DataFrame(rows)


def spreads(data: pd.DataFrame) -> pd.DataFrame:
    """Mean distance of runs from their median: each random policy against the null, in points of the score; and the
    share of a policy's variance that the null has not (see `beyond`).

    The test (Brown and Forsythe's, `intervals.spread`, as in the chapter's claims about width) takes both groups for
    independent. Runs of Random-All and Random-One with one number are not: they share their seed and the draws of their
    first epoch, of which an unpaired test makes no use, so that it is blunter there than it could be."""
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


def beside_fixed(data: pd.DataFrame) -> str:
    """What random selection gains on average over all four types at every step (the null), paired by seed; and the best
    by the paper's measure of as many first runs of each."""
    told = []
    for name in task_names(data):
        runs = {method: of(data, method, name).sort_values("seed") for method in POLICIES}
        gains = {method: tables.versus(runs[method], runs["fixed-seed"]) for method in RANDOM}
        parts = [f"{m} less seeds alone is {said(e, 2)} points{_worse(e)}" for m, e in gains.items() if e["n"]]
        if parts:
            values = {called(method): some["paper"].dropna() for method, some in runs.items() if len(some)}
            n = min(map(len, values.values()))
            best = ", ".join(f"{who} {100 * found.iloc[:n].max():.1f}" for who, found in values.items())
            told.append(f"on {name} {', '.join(parts)}, and by the paper's measure the best of the first {n} runs has: "
                        + best)
    return "; ".join(told)


def _worse(estimate: Estimate) -> str:
    """Whether a difference is a loss or a gain, where it is clear of zero."""
    return f" (clear of zero: {'better' if estimate['effect'] > 0 else 'worse'})" if tables.clear(estimate) else ""


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
    on rows that ranked nothing; last the mean of all random runs there. Sequences share their fresh seeds, so that the
    intervals are over seeds, each a mean over sequences."""
    rows = []
    for name in task_names(data):
        again, first = of(data, "replay", name), of(data, "Random-All", name)
        for was in ("best", "middle"):
            some = again[again["was"] == was]
            if len(some):
                once = first[first["draw"].isin(some["draw"])]
                by_seed = some.groupby("seed")[["dev", "unseen"]].mean()
                rows.append({
                    "task": name, "sequences": f"{was} {some['draw'].nunique()}",
                    "first time, dev": once["dev"].mean() * 100,
                    "replayed, dev": text(by_seed["dev"]),
                    "unseen rows": "test" if some["test"].notna().all() else "held-out",
                    "first time": once["unseen"].mean() * 100,
                    "replayed": text(by_seed["unseen"]),
                    "all random runs": first["unseen"].mean() * 100})
    return pd.DataFrame(rows)


def stays_lucky(data: pd.DataFrame, task: str) -> Estimate:
    """Best sequences less middle ones, replayed: points on rows that ranked nothing, paired by fresh seed."""
    means = of(data, "replay", task).groupby(["was", "seed"], as_index=False)["unseen"].mean()
    return tables.versus(*(means[means["was"] == was] for was in ("best", "middle")), "unseen")


def stays_lucky_in_words(data: pd.DataFrame) -> str:
    """`stays_lucky` in words, on each task that has replays."""
    found = {name: stays_lucky(data, name) for name in task_names(data)}
    return readable(", ".join(f"{said(e)} on {name}" for name, e in found.items() if e["n"])) or figures.DASH


def sequences(data: pd.DataFrame) -> pd.DataFrame:
    """Replays on rows that ranked nothing: standard deviations, in points, between sequences and between the seeds of
    one sequence, and the sequences' share of the two variances, in percent.

    Every sequence has the same seeds, so that the analysis of variance has two ways: what the seeds have in common is
    taken out of the differences between sequences, and counted within them. The share's interval is F's.
    """
    rows = []
    for name in task_names(data):
        again = of(data, "replay", name)
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


def distributions(data: pd.DataFrame):
    """A panel a task: every run of each policy, with the mean and its interval."""
    some = data[data["method"].isin(POLICIES)].replace({"method": NAMES})
    if some.empty:
        return figures.placeholder()
    fig, axes = figures.panels(1, some["task"].nunique(), height=1.9)
    for ax, (name, part) in zip(axes, some.groupby("task", sort=False), strict=True):
        order = [called(m) for m in POLICIES if called(m) in set(part["method"])]
        figures.dots(ax, part, "score", "method", order)
        ax.set(xlabel=readable(f"{name}: {tasks.get(name).verdict_metric}, points"))
    return fig


def distributions_in_words(data: pd.DataFrame) -> str:
    found = {f"{name}, {called(method)}": scores(data, method, name)
             for name in task_names(data) for method in POLICIES}
    return tables.listed("Scores of every run by policy.",
                         [f"{label}: {values.min():.1f} to {values.max():.1f}, mean {values.mean():.1f}"
                          for label, values in found.items() if len(values)])
