"""What several chapters' tables share: measures of runs, pairing by seed, estimates as text, claims. Never torch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd
from IPython.display import Markdown, display

from kdutils import claims, figures, summary, tasks, verdicts
from kdutils.intervals import Estimate, paired
from kdutils.tasks import readable

# Measure -> the column of `records.frame` that holds it (see `measured`).
MEASURES = {"score": "{split}_{score}", "held": "held_{score}", "agreement": "{split}_agreement",
            "teacher": "extra_teacher_{split}_{score}", "majority": "extra_majority_{split}_{score}"}


# ---------------------------------------------------------------------------------------------------------------- runs


def measured(frame: pd.DataFrame, arguments: Iterable[str] = (), **more: str) -> pd.DataFrame:
    """`records.frame` with a column for each of `MEASURES` and of `more`, as fractions, and with the columns
    `arguments`, which only some runs have.

    `score` is the verdict's metric on test, or else on dev, `held` the same on held-out rows; `teacher` and `majority`
    are what the run's teacher and a constant answer score. In a column's name {score} stands for that metric, {paper}
    for the paper's own and {split} for where `score` is read. Times of runs that were trained in a pack are left out:
    they are shares of the pack's; and those of runs on another device, or in another dtype, than most of their task's.
    Runs of MNLI come a second time, as MNLI-mm (see `task_names`).
    """
    times = [column for column in frame if column.endswith("_seconds")]
    frame = frame.assign(**frame[times].where(_comparable_times(frame)))
    frame = _with_mismatched(frame).reset_index(drop=True)

    def measures(row):
        task = tasks.get(row["task"])
        score, paper = task.verdict_metric, task.metrics[0]
        split = "test" if pd.notna(row.get(f"test_{score}")) else "dev"
        return {name: row.get(column.format(score=score, paper=paper, split=split), math.nan)
                for name, column in (MEASURES | more).items()}

    added = pd.DataFrame([measures(row) for row in frame.to_dict("records")], index=frame.index)
    return frame.reindex(columns=list(dict.fromkeys([*frame.columns, *arguments]))).join(added)


def _comparable_times(frame: pd.DataFrame) -> pd.Series:
    """Whether the times of each run can stand beside those of the others of its task."""
    alike = frame.get("extra_packed", pd.Series(index=frame.index, dtype=object)).isna()
    if verdicts.DTYPE not in frame or frame.empty:
        return alike
    task, device, dtype = (frame[name] for name in ("task", "device", verdicts.DTYPE))
    place = (device + " " + dtype).where(dtype.notna())
    most = place.groupby(task).transform(lambda some: next(iter(some.mode()), None))
    usual = device.where(place == most).groupby(task).transform("first")
    return alike & ((place == most) | dtype.isna() & (usual.isna() | (device == usual)))  # older runs name no dtype


def _with_mismatched(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs of MNLI once more as runs of MNLI-mm, whose dev set is its second dev split."""
    on_dev = {name: name.replace("mismatched_", "dev_") for name in frame if "mismatched_" in name}
    if not on_dev:
        return frame
    again = frame[frame["mismatched_accuracy"].notna()]
    return pd.concat([frame, again.assign(task=tasks.MISMATCHED, **{d: again[m] for m, d in on_dev.items()})])


def task_names(data: pd.DataFrame, mismatched: bool = False) -> list[str]:
    """The tasks that have runs, in the order of the data. MNLI-mm, which the papers print as a task and for which
    nothing is trained here, only if asked for: in a mean over tasks, MNLI would count twice."""
    return [name for name in dict.fromkeys(data["task"]) if mismatched or name != tasks.MISMATCHED]


# ---------------------------------------------------------------------------------------------------------- differences


def by_seed(a: pd.DataFrame, b: pd.DataFrame, measure: str = "score") -> pd.Series:
    """A minus B in points, by seed (see `verdicts.differences`). ValueError: two runs of a seed on one side."""
    if not (len(a) and len(b)):
        return pd.Series(dtype=float)
    return verdicts.differences(a, b, measure, measure) * figures.scale(measure) / 100


def versus(a: pd.DataFrame, b: pd.DataFrame, measure: str = "score") -> Estimate:
    """The mean of A minus B in points, paired by seed."""
    return paired(by_seed(a, b, measure))


def pooled(differences: dict[str, pd.Series]) -> dict[str, Estimate]:
    """The estimate of each task's differences by seed and, under "all", of two tasks or more that have as many seeds as
    a verdict takes or, where there is none of these, any."""
    there = {name: values for name, values in differences.items() if len(values)}
    enough = [values for values in there.values() if len(values) >= verdicts.FEWEST] or list(there.values())
    made = {name: paired(values) for name, values in there.items()}
    return made | ({"all": paired(verdicts.over_tasks(enough))} if len(enough) > 1 else {})


# ----------------------------------------------------------------------------------------------------------------- text


def text(values: pd.Series) -> str:
    """Mean of fractions in points, half its 95 % interval, n."""
    return figures.plus_minus(*figures.interval(values * 100))


def said(estimate: Estimate, digits: int = 1) -> str:
    """A difference: effect with its sign, half its interval, n."""
    half = (estimate["high"] - estimate["low"]) / 2
    return figures.plus_minus(estimate["effect"], half, estimate["n"], digits, sign=True)


def marks(runs: pd.DataFrame, prefix: str = "") -> dict[str, str]:
    """What the teacher and a constant answer score on a task, in points; with a prefix, by the measures so named."""
    found = {"teacher": runs[f"{prefix}teacher"], "constant answer": runs[f"{prefix}majority"]}
    return {who: figures.number(scores.mean() * 100) for who, scores in found.items()}


def listed(lead: str, parts: Iterable[str], none: str = "No runs yet.") -> str:
    """A lead and its parts as one sentence, for prose or for those who do not see a figure."""
    return f"{lead} {'; '.join(parts) or none}"


def in_words(estimates: dict[str, Estimate], what: str = "Differences in score") -> str:
    """What a plot of differences says to those who do not see it."""
    parts = [f"{name}: {figures.number(e['effect'], sign=True)} ({e['n']} seeds)" for name, e in estimates.items()]
    return listed(f"{what} with 95 % intervals, in points.", parts)


def clear(estimate: Estimate) -> bool:
    """Whether an estimate has the seeds of a verdict, and an interval that excludes zero."""
    return estimate["n"] >= verdicts.FEWEST and (estimate["low"] > 0 or estimate["high"] < 0)


# --------------------------------------------------------------------------------------------------------------- tables


def conclude(text: str) -> None:
    """Show what follows from the runs, as a sentence of its own; nothing where the text is empty."""
    if text:
        display(Markdown(f"Here: {readable(text)}."))


def compared(table: pd.DataFrame, first: str) -> pd.DataFrame:
    """A table of text without the columns, `first` apart, in which fewer than two rows have a value: there is nothing
    to compare in them. All columns that have any, where none has two."""
    filled = (table.drop(columns=first) != figures.DASH).sum()
    return table[[first, *filled.index[filled >= min(2, filled.max())]]]


def printed(table: str, only: Iterable[str] = ()) -> pd.DataFrame:
    """A table of a paper, as it is printed; of the tasks `only`, in their order, where it has any of them."""
    only = list(only)
    whole = claims.published().query("table == @table")
    some = whole[whole["task"].isin([*only, "all"])]
    found = some if some["task"].nunique() > 1 else whole
    names = {"all average": "average", "all parameters-millions": "parameters, millions"}
    column = (found["task"] + " " + found["metric"]).replace(names)
    wide = found.assign(column=column).pivot_table(index="row", columns="column", values="value", sort=False)
    order = sorted(wide, key=lambda name: only.index(task) if (task := name.split()[0]) in only else len(only))
    return wide[order].reset_index().rename_axis(columns=None)


# --------------------------------------------------------------------------------------------------------------- claims


def judged(data: pd.DataFrame, chapter: str, profile: str) -> pd.DataFrame:
    """The claims of a chapter by id: sentence, the paper's effect, ours in its metric, ours as it is judged (in points,
    pooled over tasks), verdict."""
    rows = {}
    for claim in claims.load()["claims"]:
        if claim["chapter"] != chapter:
            continue
        *_, found = verdicts.judge(data, claim, profile)
        paper = claims.evaluate(claim["paper_effect"]) if claim.get("paper_effect") else math.nan
        r = claim["kind"] == "correlation"  # whose interval is not symmetric
        ours = said(found)
        if r and found["n"]:
            ours = f"{summary.interval(found['effect'], found['low'], found['high'], 2)} ({found['n']})"
        rows[claim["id"]] = {
            "claim": claim["sentence"], "the paper": figures.number(paper, 1 + r, sign=True), summary.LIKE: like(found),
            "ours": ours,
            "tasks": ", ".join(found["tasks"]) or figures.DASH, "verdict": found["verdict"],
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def like(found: dict) -> str:
    """The effect of a judged claim in the paper's own metric, with half its interval and, where the paper prints only
    some of the pooled tasks, the tasks it is on."""
    half = (found.get("like_high", math.nan) - found.get("like_low", math.nan)) / 2
    text = figures.number(found.get("like_effect"), sign=True)
    return text if math.isnan(half) else f"{text} ± {figures.number(half)}{summary.some_tasks(found)}"


def seen(data: pd.DataFrame, claim: str, profile: str) -> str:
    """The smallest effect on a claim, in points, that its runs would have found in four cases of five."""
    return figures.number(verdicts.judge(data, claims.one(claim), profile)[-1]["smallest"])


def by_task(data: pd.DataFrame, claim: str, profile: str) -> str:
    """The effect of a claim, in points, on each of the tasks that are pooled for it."""
    *rows, found = verdicts.judge(data, claims.one(claim), profile)
    told = [f"{row['task']} {said(row).rpartition(' (')[0]}" for row in rows if row["task"] in found["tasks"]]
    return readable(", ".join(told)) or figures.DASH
