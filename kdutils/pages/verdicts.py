"""What chapter 07 shows of the verdicts: forest plot, tables with links, the gap to the teacher, what is missing."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display

from kdutils import claims as published
from kdutils import experiments, figures, profiles, tables, tasks
from kdutils.intervals import paired, unpaired
from kdutils.records import look_up
from kdutils.verdicts import by_teacher, select

PAPERS = {key: about["short"] for key, about in published.load()["papers"].items()}
MARKS = {"holds": ("o", "#0072b2"), "contradicted": ("X", "#d55e00"), "undecided": ("s", "#7f7f7f")}
LINEAR = 3  # points up to which the axis is linear: a few effects are tens of points, most are not
TICKS = [-30, -10, -3, -2, -1, 0, 1, 2, 3, 10, 30]


def forest(table: pd.DataFrame):
    """A forest plot of `verdicts(...)[0]`: our effect and interval (marker and colour by verdict), the paper's effect
    (on the tasks pooled here, where it is printed) as an open diamond, the null value as a tick; a panel a paper, and
    one for claims of correlation. Returns the figure."""
    table = table.assign(paper_effect=table["paper_here"].fillna(table["paper_effect"]))
    figures.style()
    parts = {PAPERS[paper]: part[part["kind"] != "correlation"] for paper, part in table.groupby("paper", sort=False)}
    parts[""] = table[table["kind"] == "correlation"]
    heights = [max(1, len(part)) + 1 for part in parts.values()]
    figure, axes = plt.subplots(len(parts), 1, figsize=(7.2, 0.25 * sum(heights) + 1.2), height_ratios=heights)
    for axis, (paper, part) in zip(axes, parts.items(), strict=True):
        _draw(axis, part.iloc[::-1])
        axis.set_title(paper, loc="left", fontweight="bold")
    for axis in axes[:-1]:
        axis.set_xscale("symlog", linthresh=LINEAR)
        axis.set_xlim(_reach(table[table["kind"] != "correlation"]))
        axis.set_xticks(TICKS, [f"{tick:+d}".replace("-", "−") if tick else "0" for tick in TICKS], minor=False)
        axis.tick_params(axis="x", labelbottom=axis is axes[-2])
    axes[-2].set_xlabel(f"A less B, points (logarithmic beyond {LINEAR})")
    axes[-1].set(xlabel="Pearson's r", xlim=(-1, 1))
    handles = [plt.Line2D([], [], marker=m, color=c, ls="none", label=name) for name, (m, c) in MARKS.items()]
    diamond = plt.Line2D([], [], marker="D", color="k", mfc="none", ls="none", ms=5, label="the paper")
    figure.legend(handles=[*handles, diamond], loc="outside upper right", ncols=4)
    return figure


def _reach(part: pd.DataFrame) -> tuple[float, float]:
    """Limits that hold every interval and effect, and the ticks at 3 points."""
    ends = part[["low", "high", "effect", "paper_effect"]].stack()
    return min(-LINEAR, ends.min()) * 1.1, max(LINEAR, ends.max()) * 1.1


def _draw(axis, part: pd.DataFrame) -> None:
    for y, row in enumerate(part.itertuples()):
        axis.plot(row.null, y, marker="|", color="k", ms=8)
        if row.verdict in MARKS:
            marker, colour = MARKS[row.verdict]
            axis.plot([row.low, row.high], [y, y], color=colour, lw=2)
            axis.plot(row.effect, y, marker=marker, color=colour, ms=6)
        if pd.isna(row.effect):
            axis.annotate(row.verdict, (1, y), xycoords=("axes fraction", "data"), ha="right", va="center", size=7)
        axis.plot(row.paper_effect, y, marker="D", color="k", mfc="none", ms=5, ls="none")
    axis.axvline(0, color="k", lw=0.6)
    labels = [f"{row.short}  {row.number}" for row in part.itertuples()]
    axis.set(yticks=range(len(part)), yticklabels=labels, ylim=(-0.6, len(part) - 0.4))
    axis.tick_params(axis="y", labelsize=8)
    axis.grid(False, axis="y")


def in_words(table: pd.DataFrame) -> str:
    """What the forest plot says to those who do not see it."""
    said = "; ".join(f"{verdict}: {', '.join(part['short'])}" for verdict, part in table.groupby("verdict", sort=True))
    return f"Forest plot of {len(table)} claims, our effect and 95 % interval beside the paper's effect. {said}."


def show(table: pd.DataFrame, caption: str, digits: int = 1) -> None:
    """`figures.table`, with chapters linked to their results, or to the section named behind a #; an empty table is a
    line that says so."""
    if table.empty:
        print(f"No runs yet for: {caption}")
        return
    text = table.map(lambda v: figures.number(v, digits) if v is None or isinstance(v, float) else v)
    shown = figures.Table(text, caption)
    html = re.sub(r"<td>((0[1-9])_\w+)(#[\w-]+)?</td>", _link, shown._repr_html_())
    display({"text/html": html, "text/plain": repr(shown)}, raw=True)


def _link(cell: re.Match) -> str:
    chapter, number, section = cell.groups()
    return f'<td><a href="{chapter}.html{section or "#the-result"}">{number}</a></td>'


def another_teacher(data: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Claims with three seeds or more of a task's first fine-tuned teacher and of a later one, which another machine
    made: the effect under each, in points, what computed the later one's runs, and how far apart the two are."""
    rows = []
    for number, claim in enumerate(published.load()["claims"], 1):
        if claim["kind"] not in ("beats", "nearly"):
            continue
        for task in profiles.task_names(profile):
            groups = by_teacher(data, claim, task)
            for other in groups[1:]:
                both = [seeds["difference"] for seeds in (groups[0], other)]
                if min(map(len, both)) < 3:
                    continue
                apart = unpaired(*both)
                rows.append({"no.": number, "claim": claim["short"], "task": tasks.title(task)}
                            | dict(zip(("first teacher", "another"), map(tables.said, map(paired, both)), strict=True))
                            | {"computed in": "; ".join(sorted(set(other["dtype"].dropna()))),
                               "apart": tables.said(apart).rpartition(" (")[0], "p": apart["p"]})
    return pd.DataFrame(rows)


def gaps(data: pd.DataFrame) -> pd.DataFrame:
    """How far the layer-dropped KD student stays behind its teacher, in the paper and here, in points of the paper's
    metric on dev, and here also in the verdicts' metric on test where there is one; one row a task that has runs. The
    teacher is the one that taught them."""
    rows = []
    for task, metric in (("mrpc", "f1"), ("sst2", "accuracy"), ("stsb", "spearman")):
        paper = [published.cell(f"stark-main-dropped/{row}/{task} {metric}") for row in ("BERT-base", "KD4")]
        here = data[(data["task"] == task) & data.get(f"dev_{metric}", pd.Series(index=data.index)).notna()]
        student = select(here, {"chapter": "02_stark", "method": "KD", "args": {"student": "dropped"}})
        if student.empty:
            continue
        ours = [student[column].mean() * 100 for column in (f"extra_teacher_dev_{metric}", f"dev_{metric}")]
        names = ["teacher", "student", "gap", "our teacher", "our student", "our gap"]
        values = [*paper, paper[0] - paper[1], *ours, ours[0] - ours[1]]
        judged = f"test_{tasks.get(task).verdict_metric}"
        test = {"as judged, on test": (student[f"extra_teacher_{judged}"] - student[judged]).mean() * 100
                } if judged in student else {}
        rows.append({"task": f"{tasks.title(task)}, {metric}"} | dict(zip(names, values, strict=True)) | test
                    | {"n": len(student)})
    return pd.DataFrame(rows)


def recorded(data: pd.DataFrame, profile: str) -> pd.DataFrame:
    """How many runs of each chapter there are, a column a task in the profile's order."""
    counts = pd.crosstab(data["chapter"], data["task"])
    counts = counts[[name for name in profiles.task_names(profile) if name in counts]]
    return counts.rename(columns=tasks.title).rename_axis(columns=None).reset_index()


def missing(profile: str) -> pd.DataFrame:
    """What the chapters plan at `profile` and the store lacks: chapter, task, the task's name in commands, planned and
    missing."""
    rows = []
    for chapter in experiments.CHAPTERS:
        for task in profiles.task_names(profile):
            specs = experiments.plan(chapter, profile, task)
            _, lacking = look_up(specs)
            if lacking:
                rows.append({"chapter": chapter, "task": tasks.title(task), "in commands": f"--task {task}",
                             "planned": len(set(specs)), "missing": len(lacking)})
    return pd.DataFrame(rows, columns=["chapter", "task", "in commands", "planned", "missing"])
