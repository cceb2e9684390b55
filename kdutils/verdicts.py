"""Claims against records: paired differences, intervals, and a verdict by rules that were fixed before the runs.

All effects are in points (100 times a fraction), or Pearson's r for a correlation claim. The rule: *holds* when the
95 % interval of the effect is above the claim's null value (0, or minus its margin), *contradicted* when below,
*undecided* otherwise or with fewer than five seeds. Of more seeds than were planned, the first are taken. Nothing here
trains, and nothing here needs torch.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdutils import claims as published
from kdutils import experiments, profiles, tasks
from kdutils.experiments import stark
from kdutils.intervals import EMPTY, LEVEL, Estimate, correlation, holm, paired, pool_spreads, spread
from kdutils.records import Store, frame, look_up, repository, write_atomically

PAPER = "paper"  # as a claim's measure: the metric that the papers print
FEWEST = 5  # seeds below which nothing is decided
# A teacher near chance cannot settle a claim about teaching.
CANNOT_DECIDE = {("mini", "rte"): "its teacher is near chance"}


def verdict(estimate: Estimate, null: float = 0.0) -> str:
    """The rule, in one place."""
    if not estimate["n"]:
        return "no runs yet"
    if estimate["n"] >= FEWEST and estimate["low"] > null:
        return "holds"
    if estimate["n"] >= FEWEST and estimate["high"] < null:
        return "contradicted"
    return "undecided"


def results(profile: str, store: Store | None = None) -> pd.DataFrame:
    """The records of all that the chapters plan at `profile`, as `records.frame` gives them (runs that an earlier plan
    made are left out); without any, an empty frame with its first columns."""
    specs = [spec for chapter in experiments.CHAPTERS for spec in experiments.plan(chapter, profile)]
    found, _ = look_up(specs, store)
    return frame(found) if found else pd.DataFrame(columns=["chapter", "task", "method", "seed", "seconds", "device"])


def select(data: pd.DataFrame, where: dict[str, Any], **more: Any) -> pd.DataFrame:
    """The records of a method (and of a chapter, where one is named: two chapters may both have a PKD) whose arguments
    are those of `where["args"]` (a list: any of them; None: absent)."""
    found = data[data["method"] == where["method"]]
    if "chapter" in where:
        found = found[found["chapter"] == where["chapter"]]
    for name, wanted in (where.get("args", {}) | more).items():
        options = wanted if isinstance(wanted, list) else [wanted]
        values = found[name] if name in found else [None] * len(found)
        found = found[np.array([any(_same(value, option) for option in options) for value in values], dtype=bool)]
    return found


def _same(value: Any, wanted: Any) -> bool:
    absent = value is None or (isinstance(value, float) and math.isnan(value))
    if absent or wanted is None:
        return absent and wanted is None
    numbers = all(isinstance(x, int | float | np.number) and not isinstance(x, bool) for x in (value, wanted))
    return math.isclose(value, wanted) if numbers else value == wanted


def reported(data: pd.DataFrame, metric: str, protocol: str = "clean") -> str | None:
    """The column that a comparison of these records reads: the metric on `test` where every record has it, else on
    `dev`; under the papers' protocol the best checkpoint's on `dev`. None where no column is whole."""
    names = [f"best_dev_{metric}"] if protocol == "paper" else [f"test_{metric}", f"dev_{metric}"]
    return next((name for name in names if name in data and data[name].notna().all()), None)


def by_seed(data: pd.DataFrame, column: str | None) -> pd.Series:
    """A column in points, by seed. ValueError where a seed is there twice: the claim is then ambiguous."""
    if column is None or data.empty:
        return pd.Series(dtype=float)
    if data["seed"].duplicated().any():
        twice = data[data["seed"].duplicated(keep=False)].iloc[0]
        raise ValueError(f"records: got several of {twice.method} {twice.task} seed {twice.seed}; allowed: one a seed")
    return data.set_index("seed")[column].sort_index() * 100


def chosen(grid: pd.DataFrame, metric: str, protocol: str = "clean") -> pd.DataFrame:
    """Of a grid over `sparsity` (one task, one student; above 0, which is the dense teacher), the records that the
    protocol reports.

    clean: one sparsity for all seeds, the best by its mean held-out metric.
    paper: each seed takes the sparsity whose best checkpoint is best on dev, where it is also reported.
    Both choose on the seeds that ran a whole grid of the plan (`experiments.stark.grids`), and nothing while none has.
    """
    by = f"best_dev_{metric}" if protocol == "paper" else f"held_{metric}"
    if grid.empty or by not in grid:
        return grid.iloc[:0]
    table = grid.pivot_table(index="seed", columns="sparsity", values=by)
    first = grid.iloc[0]
    planned = stark.grids(first["profile"], first["student"], first["scores"], first["base"]) or [tuple(table)]
    whole = [table[list(some)].dropna() for some in planned if set(some) <= set(table)]
    whole = next((seeds for seeds in whole if len(seeds)), None)
    if whole is None:
        return grid.iloc[:0]
    if protocol == "paper":
        decided = grid[grid["seed"].isin(whole.index) & grid["sparsity"].isin(whole.columns)]
        return decided.loc[decided.groupby("seed")[by].idxmax()]
    return grid[grid["sparsity"] == whole.mean().idxmax()]


def side(data: pd.DataFrame, where: dict[str, Any], metric: str, protocol: str) -> pd.DataFrame:
    """The records of one side of a claim on one task: selected and, where it says so, chosen from a grid."""
    found = select(data, where, protocol=[None, protocol])
    return chosen(found, metric, protocol) if where.get("choose") == "sparsity" else found


def on_task(data: pd.DataFrame, claim: dict, task: str) -> tuple[pd.Series | None, Estimate]:
    """A claim on one task: the differences by seed (None for a claim that is not paired) and its estimate."""
    metric, protocol = tasks.get(task).verdict_metric, claim.get("protocol", "clean")
    found = [side(data[data["task"] == task], claim[name], metric, protocol) for name in "ab"]
    measure = claim.get("measure", metric)
    if measure == PAPER:
        measure = claim.get("papers_metric", tasks.get(task).metrics[0])
    column = reported(pd.concat(found), measure, protocol)  # one for both sides: test less dev is neither
    a, b = (by_seed(part, claim[name].get("value", column)) for name, part in zip("ab", found, strict=True))
    if claim["kind"] == "wider":
        return None, spread(a.iloc[: claim["seeds"]], b.iloc[: claim["seeds"]])
    differences = (a - b).dropna().iloc[: claim["seeds"]]
    return differences, paired(differences, -claim.get("margin", 0.0))


def in_the_papers_metric(data: pd.DataFrame, claim: dict, names: Iterable[str]) -> float:
    """The mean over tasks of a comparison's mean difference by the metric that the papers print (on MRPC F1, where
    verdicts read Matthews correlation); NaN for other claims and without runs."""
    if claim["kind"] not in ("beats", "nearly") or "measure" in claim or "value" in claim["a"]:
        return math.nan
    means = [on_task(data, claim | {"measure": PAPER}, task)[1]["effect"] for task in names]
    return float(np.mean(means)) if means else math.nan


def _correlated(data: pd.DataFrame, claim: dict, names: list[str]) -> tuple[list[str], Estimate]:
    """The tasks with points, and the estimate. One point a task and student where both sides have five seeds: the mean
    of A's `value` over seeds against the sparsity chosen from B's grid, in %."""
    points, on = [], []
    for task in names:
        for student in sorted(data.get("student", pd.Series(dtype=object)).dropna().unique()):
            rows = data[(data["task"] == task) & (data["student"] == student)]
            a = select(rows, claim["a"])
            b = side(rows, claim["b"], tasks.get(task).verdict_metric, claim.get("protocol", "clean"))
            if min(len(a), len(b)) >= FEWEST:
                points.append((a[claim["a"]["value"]].mean() * 100, b["sparsity"].iloc[0] * 100))
                on.append(task)
    return list(dict.fromkeys(on)), correlation(*zip(*points, strict=True)) if points else dict(EMPTY)


def judge(data: pd.DataFrame, claim: dict, profile: str) -> list[dict[str, Any]]:
    """A claim's rows: one a task that has runs, then `pooled`, whose verdict is the claim's.

    Pooled are the planned tasks that can decide and have five seeds: each seed's differences are averaged over them.
    """
    claim = claim | claim.get("at", {}).get(profile, {})  # a profile may have other models to compare
    null = -claim.get("margin", 0.0)
    known = profiles.task_names(profile)
    planned = [task for task in claim["tasks"] if task in known] or known
    fixed = {"claim": claim["id"], "planned": claim["seeds"]}
    if claim["kind"] == "correlation":
        on, estimate = _correlated(data, claim, planned)
        return [fixed | {"task": "pooled", "tasks": tuple(on), "verdict": verdict(estimate)} | estimate]
    rows, kept = [], {}
    for task in known:
        differences, estimate = on_task(data, claim, task)
        decides = task in planned and (profile, task) not in CANNOT_DECIDE
        if decides and estimate["n"] >= FEWEST:
            kept[task] = differences, estimate
        if estimate["n"]:
            said = verdict(estimate, null) if decides else "shown only"
            rows.append(fixed | {"task": task, "tasks": (task,), "verdict": said} | estimate)
    if claim["kind"] == "wider":
        pooled = pool_spreads([estimate for _, estimate in kept.values()])
    else:
        together = pd.concat([d for d, _ in kept.values()], axis=1).dropna().mean(axis=1) if kept else []
        pooled = paired(together, null)
    few = not kept and any(row["task"] in planned for row in rows)  # runs, but nowhere five seeds
    said = "undecided" if few or (kept and not pooled["n"]) else verdict(pooled, null)  # tasks may share no seed
    if few:  # no estimate, but the most seeds that a task which can decide has reached
        deciding = [row["n"] for row in rows if row["task"] in planned and (profile, row["task"]) not in CANNOT_DECIDE]
        pooled |= {"n": max(deciding, default=0)}
    pooled |= {"papers_metric": in_the_papers_metric(data, claim, kept)}
    return [*rows, fixed | {"task": "pooled", "tasks": tuple(kept), "verdict": said} | pooled]


def verdicts(data: pd.DataFrame, profile: str, book: dict | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(one row a claim, one row a claim and task). The first has the paper's effect, ours pooled over tasks, its
    interval, p and Holm's p over all claims, verdict, verdict after Holm, and seeds planned and reached (n)."""
    book = book or published.load()
    rows = [row for claim in book["claims"] for row in judge(data, claim, profile)]
    table = pd.DataFrame(rows).drop(columns="df", errors="ignore")
    told = pd.DataFrame(
        {"claim": claim["id"], "paper": claim["paper"], "chapter": claim["chapter"],
         "section": claim["section"], "sentence": claim["sentence"],
         "kind": claim["kind"], "headline": claim.get("headline", False), "null": -claim.get("margin", 0.0),
         "paper_effect": published.evaluate(claim["paper_effect"], book) if claim.get("paper_effect") else np.nan}
        for claim in book["claims"]
    )  # fmt: skip
    told.insert(0, "number", range(1, len(told) + 1))
    pooled = told.merge(table[table["task"] == "pooled"].drop(columns="task"), on="claim")
    decided = pooled["verdict"].isin(("holds", "contradicted", "undecided")) & (pooled["n"] >= FEWEST)
    pooled["p_holm"] = holm(pooled["p"].where(decided))
    survives = pooled["p_holm"] < 1 - LEVEL
    pooled["after_holm"] = pooled["verdict"].where(survives | (pooled["verdict"] == "no runs yet"), "undecided")
    return pooled, table[table["task"] != "pooled"].reset_index(drop=True)


SAID = {  # of one claim, of several
    "holds": ("holds", "hold"), "contradicted": ("is contradicted", "are contradicted"),
    "undecided": ("is undecided", "are undecided"), "no runs yet": ("has no runs yet", "have no runs yet"),
}  # fmt: skip
LIKE = "ours, in its metric"
FILES = ("README.md", "book/intro.md")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def _number(value: float, kind: str = "") -> str:
    return "–" if pd.isna(value) else f"{value:+.{2 if kind == 'correlation' else 1}f}".replace("-", "−")


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """`verdicts(...)[0]` as text for a reader, one row a claim: our effect in the paper's metric, ours with its 95 %
    interval, n of planned, the smallest effect that could have been seen, the verdict and whether it survives Holm's
    correction, and the section that shows it."""
    def row(r):
        ours = _number(r.effect, r.kind)
        if not pd.isna(r.low):
            ours += f" [{_number(r.low, r.kind)}, {_number(r.high, r.kind)}]"
        survives = "–" if r.verdict in ("undecided", "no runs yet") else "yes" if r.after_holm == r.verdict else "no"
        return {
            "no.": r.number, "claim": r.sentence, "paper": _number(r.paper_effect, r.kind),
            LIKE: _number(r.papers_metric), "ours": ours,
            "tasks": ", ".join(r.tasks) or "–", "n": f"{r.n}/{r.planned}",
            "seen": _number(r.null + r.smallest, r.kind).lstrip("+"), "verdict": r.verdict, "Holm": survives,
            "chapter": f"{r.chapter}#{r.section}",
        }  # fmt: skip

    columns = ["no.", "claim", "paper", LIKE, "ours", "tasks", "n", "seen", "verdict", "Holm", "chapter"]
    return pd.DataFrame([row(r) for r in table.itertuples()], columns=columns)


def counts(table: pd.DataFrame) -> dict[str, int]:
    """How many claims got each verdict."""
    return {name: int((table["verdict"] == name).sum()) for name in SAID}


def summary(profile: str = "mini") -> str:
    """The headline claims as a markdown table, from published records only: what the README and the front page show."""
    published_only = Store(runs="book/records")  # no single-run files there, so only the published lines are read
    table, _ = verdicts(results(profile, published_only), profile)
    columns = ["claim", "paper", LIKE, "ours", "tasks", "n", "verdict", "Holm"]
    rows = shown(table[table["headline"]])[columns].to_numpy().tolist()
    lines = [f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows]]
    said = ", ".join(f"{n} {SAID[name][n > 1]}" for name, n in counts(table).items() if n)
    lead = f"""Of {len(table)} claims at `{profile}`, {said}. The headline claims, in points: the paper's effect; ours
by the same metric; ours as it is judged (MRPC by Matthews correlation where the papers print F1) with its 95 %
interval; the tasks that have five seeds; n of the seeds planned; the verdict and whether it survives Holm's correction
for testing all claims. A verdict is provisional while n or the tasks fall short of the plan in `book/claims.yml`."""
    return "\n".join([lead, "", *lines])


def write_summary(path: Path, text: str) -> bool:
    """Put `text` between the markers of a file; returns whether that changed it. ValueError where they are missing."""
    old = path.read_text(encoding="utf-8")
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path.name}: got no {BEGIN} … {END}; allowed: one pair of these markers")
    new = f"{before}{BEGIN}\n{text}\n{END}{after}"
    if new != old:
        write_atomically(path, new)
    return new != old


def main(argv: list[str] | None = None) -> int:
    """`python -m kdutils.verdicts summary [--write]`: print the summary, or put it into README.md and book/intro.md."""
    parser = argparse.ArgumentParser(prog="python -m kdutils.verdicts", description=main.__doc__)
    parser.add_argument("command", choices=["summary"])
    parser.add_argument("--profile", default="mini", choices=sorted(profiles.PROFILES))
    parser.add_argument("--write", action="store_true", help="write it between the markers of the two files")
    args = parser.parse_args(argv)
    text = summary(args.profile)
    if not args.write:
        print(text)
        return 0
    for name in FILES:
        print(f"{name}: {'written' if write_summary(repository() / name, text) else 'unchanged'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
