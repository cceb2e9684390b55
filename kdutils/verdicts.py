"""Claims against records: paired differences, intervals, and a verdict by rules that were fixed before the runs.

All effects are in points (100 times a fraction), or Pearson's r for a correlation claim. The rule: *holds* when the
95 % interval of the effect is above the claim's null value (0, or minus its margin), *contradicted* when below,
*undecided* otherwise or with fewer than five seeds. Of more seeds than were planned, the first are taken. Nothing here
trains, and nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from kdutils import claims as published
from kdutils import experiments, profiles, tasks
from kdutils.experiments import stark
from kdutils.experiments.stark_baselines import DEFAULT, best_own
from kdutils.intervals import EMPTY, LEVEL, Estimate, correlation, holm, paired, pool_spreads, spread
from kdutils.records import TEACHER, Spec, Store, frame, look_up

PAPER = "paper"  # as a claim's measure: the metric that the papers print
FEWEST = 5  # seeds below which nothing is decided
DTYPE = "extra_dtype"  # what computed a run
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


def serving(specs: Iterable[Spec], book: dict | None = None) -> list[Spec]:
    """Those of `specs`, of one profile, that claims read or choose by, on their own tasks and up to their planned
    seeds, in the order of their worth: headline claims first, task by task, seed by seed."""
    specs = list(specs)
    claims = [published.at(claim, specs[0].profile) for claim in (book or published.load())["claims"] if specs]
    table = pd.DataFrame([asdict(spec) | spec.args | {"at": i} for i, spec in enumerate(specs)])
    order: dict[Spec, None] = {}
    for claim in sorted(claims, key=lambda claim: not claim.get("headline", False)):
        for task in claim["tasks"]:
            found = [_planned(table[table["task"] == task], claim, claim[side]) for side in "ab"]
            order |= dict.fromkeys(specs[i] for i in pd.concat(found).sort_values(["seed", "at"])["at"])
    return list(order)


def _planned(table: pd.DataFrame, claim: dict, where: dict[str, Any]) -> pd.DataFrame:
    """The specs that a side of a claim reads, with the trials or tuned runs that it may choose: its first seeds, which
    need not begin at 0."""
    names = [where["method"]]
    if where.get("choose") == "trials":
        names += [f"{stage}-{where['method']}" for stage in ("tune", "tuned")]
    protocol = [None, claim.get("protocol", "clean")]
    found = pd.concat([select(table, where | {"method": name}, protocol=protocol) for name in names])
    trial = found["method"].str.startswith("tune-")
    first = sorted(set(found["seed"][~trial]))[: claim["seeds"]]
    return found[trial | found["seed"].isin(first)]


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


def differences(a: pd.DataFrame, b: pd.DataFrame, of_a: str | None, of_b: str | None) -> pd.Series:
    """The column `of_a` of A less the column `of_b` of B, in points, by seed. Seeds whose two sides began with
    different teachers are no pairs and are left out: every machine may fine-tune a teacher of its own."""
    found = (by_seed(a, of_a) - by_seed(b, of_b)).dropna()
    ours, theirs = (teachers(side).set_axis(side["seed"]).reindex(found.index) for side in (a, b))
    return found[ours == theirs]


def teachers(data: pd.DataFrame) -> pd.Series:
    """The fine-tuned teacher that each run began with; "" where no run of the task names one."""
    return data[TEACHER].fillna("") if TEACHER in data else pd.Series("", index=data.index)


def own(data: pd.DataFrame, where: dict[str, Any], metric: str) -> tuple[tuple[float, float] | None, dict]:
    """What the trials of a method's own hyper-parameters chose (one task; None while one is missing), and the held-out
    metric of each pair that was tried."""
    trials = select(data, where | {"method": f"tune-{where['method']}"})
    if trials.empty:
        return None, {}
    held = dict(zip(zip(trials["heat"], trials["weight"], strict=True), trials[f"held_{metric}"], strict=True))
    planned = stark.trials(*trials.iloc[0][["profile", "task"]], where["method"])
    return (best_own(held) if len(held) == len(planned) else None), held


def tuned(data: pd.DataFrame, where: dict[str, Any], metric: str) -> pd.DataFrame:
    """The records of a method (one task) at what its trials chose; at its defaults where they chose these, or while
    one is missing."""
    best, _ = own(data, where, metric)
    return select(data, where if best in (None, DEFAULT) else where | {"method": f"tuned-{where['method']}"})


def chosen(grid: pd.DataFrame, metric: str, protocol: str = "clean") -> pd.DataFrame:
    """Of a grid over `sparsity` (one task, one student; above 0, which is the dense teacher), the records that the
    protocol reports.

    clean: one sparsity for all seeds, the best by its mean held-out metric.
    paper: each seed takes the sparsity whose best checkpoint is best on dev, where it is also reported.
    Both choose on the seeds that ran a whole grid of the plan (`experiments.stark.grids`), and nothing while none has.
    A later grid of the plan counts until the planned seeds have run the better one.
    """
    by = f"best_dev_{metric}" if protocol == "paper" else f"held_{metric}"
    if grid.empty or by not in grid:
        return grid.iloc[:0]
    table = grid.pivot_table(index="seed", columns="sparsity", values=by)
    first = grid.iloc[0]
    planned = stark.grids(first["profile"], first["student"], first["scores"], first["base"]) or [tuple(table)]
    whole = [table[list(some)].dropna() for some in planned if set(some) <= set(table)]
    enough = profiles.profile(first["profile"]).seeds
    whole = max(whole, key=lambda seeds: min(len(seeds), enough), default=table.iloc[:0])
    if whole.empty:
        return grid.iloc[:0]
    if protocol == "paper":
        decided = grid[grid["seed"].isin(whole.index) & grid["sparsity"].isin(whole.columns)]
        return decided.loc[decided.groupby("seed")[by].idxmax()]
    return grid[grid["sparsity"] == whole.mean().idxmax()]


def side(data: pd.DataFrame, where: dict[str, Any], metric: str, protocol: str) -> pd.DataFrame:
    """The records of one side of a claim on one task: selected and, where it says so, chosen by a grid or by trials."""
    if where.get("choose") == "trials":
        return tuned(data, where, metric)
    found = select(data, where, protocol=[None, protocol])
    return chosen(found, metric, protocol) if where.get("choose") == "sparsity" else found


def sides(data: pd.DataFrame, claim: dict, task: str) -> tuple[list[pd.DataFrame], list[str | None]]:
    """The records of both sides of a claim on one task, and the column of each that it compares."""
    metric, protocol = tasks.get(task).verdict_metric, claim.get("protocol", "clean")
    found = [side(data[data["task"] == task], claim[name], metric, protocol) for name in "ab"]
    measure = claim.get("measure", metric)
    measure = papers_metric(claim, task) if measure == PAPER else measure
    column = reported(pd.concat(found), measure, protocol)  # one for both sides: test less dev is neither
    return found, [claim[name].get("value", column) for name in "ab"]


def on_task(data: pd.DataFrame, claim: dict, task: str) -> tuple[pd.Series | None, Estimate]:
    """A claim on one task: the differences by seed (None for a claim that is not paired) and its estimate."""
    found, columns = sides(data, claim, task)
    if claim["kind"] == "wider":
        found = _of_one_teacher(found)
        return None, spread(*(by_seed(*side).iloc[: claim["seeds"]] for side in zip(found, columns, strict=True)))
    pairs = differences(*found, *columns).iloc[: claim["seeds"]]
    return pairs, paired(pairs, -claim.get("margin", 0.0))


def _of_one_teacher(found: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """The records of both sides that began with the teacher of the first seed: another teacher would add its own
    difference to the spread over seeds."""
    both = pd.concat(found)
    if both.empty:
        return found
    first = teachers(both.sort_values("seed", kind="stable")).iloc[0]
    return [side[teachers(side) == first] for side in found]


def by_teacher(data: pd.DataFrame, claim: dict, task: str) -> list[pd.DataFrame]:
    """A paired claim's seeds on one task, apart for each fine-tuned teacher that side A learnt from, in the order of
    their first seeds: columns `difference`, in points, and `dtype`, which computed it."""
    found, columns = sides(data, claim, task)
    pairs = differences(*found, *columns).iloc[: claim["seeds"]]
    if pairs.empty:
        return []
    told = found[0].set_index("seed").reindex(pairs.index)
    table = pd.DataFrame({"difference": pairs, "dtype": told.get(DTYPE)})
    return [seeds for _, seeds in table.groupby(teachers(told), sort=False)]


def papers_metric(claim: dict, task: str) -> str:
    """What the claim's paper prints of a task: GLUE's first metric, unless the claim names another."""
    return claim.get("papers_metric", tasks.get(task).metrics[0])


def in_the_papers_metric(data: pd.DataFrame, claim: dict, names: Iterable[str]) -> Estimate:
    """A comparison's estimate by the metric that its paper prints (on MRPC F1 or accuracy, where verdicts read Matthews
    correlation), pooled over tasks as verdicts are; empty for other claims and without runs."""
    if claim["kind"] not in ("beats", "nearly") or "measure" in claim or "value" in claim["a"]:
        return dict(EMPTY)
    return paired(over_tasks([on_task(data, claim | {"measure": PAPER}, task)[0] for task in names]))


def _beside_the_paper(data: pd.DataFrame, claim: dict, pooled: list[str]) -> dict[str, Any]:
    """The paper's effect (`paper_here`) and ours in its metric (`like_...`) on those of the pooled tasks that it prints
    (`like_tasks`); where it prints none of them, ours on all."""
    formula, metrics = claim.get("paper_effect") or {}, {task: papers_metric(claim, task) for task in pooled}
    shared = published.printed_tasks(formula, metrics)
    ours = in_the_papers_metric(data, claim, shared or pooled)
    here = published.on_tasks(formula, {task: metrics[task] for task in shared})
    return {"like_tasks": tuple(shared or pooled), "paper_here": here} | {
        f"like_{name}": ours[name] for name in ("effect", "low", "high")}


def over_tasks(by_task: list[pd.Series]) -> pd.Series:
    """Each seed's mean over tasks, for the seeds that all have."""
    return pd.concat(by_task, axis=1).dropna().mean(axis=1) if by_task else pd.Series(dtype=float)


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
    claim = published.at(claim, profile)
    null = -claim.get("margin", 0.0)
    known = profiles.task_names(profile)
    planned = [task for task in claim["tasks"] if task in known] or known
    deciding = [task for task in planned if (profile, task) not in CANNOT_DECIDE]
    fixed = {"claim": claim["id"], "planned": claim["seeds"], "planned_tasks": len(deciding)}
    if claim["kind"] == "correlation":
        on, estimate = _correlated(data, claim, planned)
        row = {"task": "pooled", "tasks": tuple(on), "like_tasks": (), "verdict": verdict(estimate)}
        return [fixed | row | estimate]
    rows, kept = [], {}
    for task in known:
        pairs, estimate = on_task(data, claim, task)
        decides = task in deciding
        if decides and estimate["n"] >= FEWEST:
            kept[task] = pairs, estimate
        if estimate["n"]:
            said = verdict(estimate, null) if decides else "shown only"
            rows.append(fixed | {"task": task, "tasks": (task,), "verdict": said} | estimate)
    if claim["kind"] == "wider":
        pooled = pool_spreads([estimate for _, estimate in kept.values()])
    else:
        pooled = paired(over_tasks([pairs for pairs, _ in kept.values()]), null)
    few = not kept and any(row["task"] in planned for row in rows)  # runs, but nowhere five seeds
    said = "undecided" if few or (kept and not pooled["n"]) else verdict(pooled, null)  # tasks may share no seed
    if few:  # no estimate, but the most seeds that a task which can decide has reached
        pooled |= {"n": max((row["n"] for row in rows if row["task"] in deciding), default=0)}
    pooled |= _beside_the_paper(data, claim, list(kept))
    return [*rows, fixed | {"task": "pooled", "tasks": tuple(kept), "verdict": said} | pooled]


def verdicts(data: pd.DataFrame, profile: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(one row a claim, one row a claim and task). The first has the paper's effect as printed, ours pooled over tasks,
    its interval, p and Holm's p over all claims, verdict, verdict after Holm, seeds planned and reached (n), tasks
    planned, and on those of the pooled tasks that the paper prints (`like_tasks`) its effect (`paper_here`) and ours
    with its interval in its metric (`like_...`)."""
    book = published.load()
    rows = [row for claim in book["claims"] for row in judge(data, claim, profile)]
    table = pd.DataFrame(rows).drop(columns="df", errors="ignore")
    told = pd.DataFrame(
        {"claim": claim["id"], "paper": claim["paper"], "chapter": claim["chapter"],
         "section": claim["section"], "short": claim["short"], "sentence": claim["sentence"],
         "kind": claim["kind"], "headline": claim.get("headline", False), "null": -claim.get("margin", 0.0),
         "paper_effect": published.evaluate(claim["paper_effect"]) if claim.get("paper_effect") else np.nan}
        for claim in book["claims"]
    )
    told.insert(0, "number", range(1, len(told) + 1))
    pooled = told.merge(table[table["task"] == "pooled"].drop(columns="task"), on="claim")
    decided = pooled["verdict"].isin(("holds", "contradicted", "undecided")) & (pooled["n"] >= FEWEST)
    pooled["p_holm"] = holm(pooled["p"].where(decided))
    survives = pooled["p_holm"] < 1 - LEVEL
    pooled["after_holm"] = pooled["verdict"].where(survives | (pooled["verdict"] == "no runs yet"), "undecided")
    return pooled, table[table["task"] != "pooled"].reset_index(drop=True)
