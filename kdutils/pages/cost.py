"""What the page Cost shows: the benchmarks' records (`python -m benchmarks`), their targets, and the runs' hours."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pandas as pd

from kdutils import figures, tasks
from kdutils.experiments import plan
from kdutils.pages import paper_plan
from kdutils.records import Record, Store, repository

FIRST = ("chapter", "what", "batch", "reference loop", "seconds", "cpu seconds", "seeds", "reference", "its error",
         "ours", "our error", "runs", "hours")  # columns of a table
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "oo", "||", "++", "**")  # parts of a bar differ in more than colour
HEADS = {"reference / it": "official loop / it", "reference / it, cpu": "official loop / it, cpu",
         "reference loop": "official loop", "reference": "official loop"}  # records say reference for it


def benchmarks() -> list[dict]:
    """The benchmarks' records, one for each part, device, number of threads and dtype; none without measurements."""
    path = repository() / "book" / "benchmarks.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def of(found: list[dict], part: str) -> list[dict]:
    """A part's records."""
    return [record for record in found if record["part"] == part]


def place(record: dict) -> str:
    """The hardware that a record was measured on, and what it computes in."""
    threads = record["threads"]
    return f"{record['device']}, {threads} thread{'s' if threads > 1 else ''}, {record['dtype']}"


def show(found: list[dict], part: str, caption: str, digits: int = 2) -> None:
    """A part's rows, one table for each place; a line that says so where it was not measured."""
    if not of(found, part):
        print(f"{caption}: not measured yet; python -m benchmarks --only {part}")
    for record in of(found, part):
        of_task = f" ({record['task']})" if record["task"] else ""
        rows = pd.DataFrame(record["rows"])
        for name in rows:
            if name.endswith("hours") or name.startswith(("at once", "minutes", "timed")):  # estimates, and counts
                rows[name] = rows[name].round().astype("Int64")
        first = [name for name in FIRST if name in rows]
        about = f"{caption}{of_task}: {place(record)}"
        rows = rows.replace({"what": {"reference loop": "official loop"}}) if "what" in rows else rows
        figures.table(rows[[*first, *rows.columns.drop(first)]].rename(columns=HEADS), about, digits)


def value(record: dict, what: str, column: str) -> float | None:
    """One number of a record; where the machine was busy with other things and the record has it, by cores' seconds."""
    row = next((row for row in record["rows"] if row["what"] == what), {})
    return row.get(f"{column}, cpu", row.get(column)) if busy(record) else row.get(column)


def busy(record: dict) -> bool:
    """Whether the machine was doing other things as well."""
    return record["load"] > record["threads"] + 0.5


@dataclass(frozen=True)
class Target:
    """What a measure's size is asked to be: at least (`least`) or at most `limit`; on a GPU only, where `gpu`. `word`
    names it in texts, "{metric}" in `what` is the metric that verdicts read on the record's task."""

    word: str
    name: str
    part: str
    what: str
    column: str
    limit: float
    least: bool
    gpu: bool = False


TARGETS = (
    Target("reference", "official loop's epoch over ours", "training", "ours", "reference / it", 10, True),
    Target("trainer", "Trainer's epoch over ours", "training", "ours", "Trainer / it", 5, True),
    Target("quality", "both loops' students apart (the verdicts' metric, test), in standard errors", "quality",
           "test {metric}", "difference / error", 1, False),
    Target("agreement", "both loops' students' agreement with the teacher apart (test), in standard errors", "quality",
           "test agreement", "difference / error", 1, False),
    Target("scoring", "scoring a batch, in training steps", "scoring", "scoring, a batch", "training steps", 2.5,
           False),
    Target("pack", "one student at a time over a pack", "replicas", "as a pack", "one at a time / it", 10, True, True),
    Target("minutes", "minutes of 200 random-selection runs", "replicas", "as a pack", "minutes of 200 runs", 5, False,
           True),
)


def targets(found: list[dict]) -> pd.DataFrame:
    """Every target beside what was measured, one row for each place: measure, target, measured, met, place."""
    rows = []
    for target in TARGETS:
        asked = f"at {'least' if target.least else 'most'} {target.limit:g}" + (", on a GPU" if target.gpu else "")
        for record in of(found, target.part):
            metric = tasks.get(record["task"]).verdict_metric if record["task"] else ""
            measured = value(record, target.what.format(metric=metric), target.column)
            if measured is not None and (record["gpu"] or not target.gpu):
                met = abs(measured) >= target.limit if target.least else abs(measured) <= target.limit
                rows.append([target.name, asked, measured, "yes" if met else "no", place(record)])
        if not any(row[0] == target.name for row in rows):
            rows.append([target.name, asked, None, "not measured", figures.DASH])
    return pd.DataFrame(rows, columns=["measure", "target", "measured", "met", "where"])


def in_short(found: list[dict]) -> dict[str, str]:
    """The measured value of every target as a text, every place's, by its word; a place by its processor alone, or with
    the dtype, where that tells it from the others."""
    table, made = targets(found), {}
    for target in TARGETS:
        seen = table[(table["measure"] == target.name) & table["measured"].notna()]
        whole = seen["where"].astype(str).str.replace("(R)", "").str.replace(" Processor", "")
        parts = whole.str.split(", ").str
        names = next((some for some in (parts[0], parts[0] + ", " + parts[-1]) if some.is_unique), whole)
        *others, last = [f"{value:.1f} ({name})" for value, name in zip(seen["measured"], names, strict=True)] or [""]
        made[target.word] = " and ".join(filter(None, (", ".join(others), last))) or "not measured yet"
    return made


def steps(found: list[dict]) -> None:
    """Show a figure of where a step's time goes, on the first place that it was measured on."""
    measured = of(found, "profile")
    if not measured:
        print("Where a step's time goes: not measured yet; python -m benchmarks --only profile")
        return
    fig, axes = figures.panels(height=2.6)
    _bars(axes[0], measured[0])
    figures.show(fig, in_words(measured[0]))


def _bars(ax, record: dict) -> None:
    names, left = ("reference loop", "ours"), [0.0, 0.0]
    *rows, whole = sorted(record["rows"], key=lambda row: row["what"] == "whole step")
    labels = [f"{HEADS.get(name, name)}\n{whole[name]:.0f} ms" for name in names]
    for i, row in enumerate(rows):
        widths = [100 * row[name] / whole[name] for name in names]
        colour = figures.COLOURS[i % len(figures.COLOURS)]
        ax.barh(labels, widths, left=left, color=colour, label=row["what"], edgecolor="white",
                hatch=HATCHES[i % len(HATCHES)])
        left = [a + b for a, b in zip(left, widths, strict=True)]
    ax.invert_yaxis()
    ax.set(xlabel="per cent of a step", xlim=(0, 100))
    ax.grid(False, axis="y")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=3, fontsize=8)


def in_words(record: dict) -> str:
    """What the figure says to those who do not see it."""
    spent = {row["what"]: row for row in record["rows"]}
    whole = spent.pop("whole step")
    parts = "; ".join(f"{name} {row['reference loop']:.0f} and {row['ours']:.0f}" for name, row in spent.items())
    return (f"Milliseconds of a step in the official loop and in ours ({place(record)}), "
            f"{whole['reference loop']:.0f} and {whole['ours']:.0f} in all: {parts}.")


def trainings(found: list[dict]) -> pd.DataFrame:
    """What each training of profile paper takes, a row for each place: its step, and what the present plan makes of it
    (see `paper_plan`): runs that have it, hours and cores' hours."""
    counts: dict[str, dict] = {}
    rows = []
    for record in of(found, "paper"):
        for row in record["rows"]:
            name = row["chapter"]
            if name not in counts:
                counts[name] = paper_plan.planned(plan(name, "paper"))
            runs, passed = counts[name].get(row["what"], (0, 0.0))
            hours = {column: passed / row["batch"] * row[seconds] / 3600
                     for column, seconds in (("hours", "seconds"), ("core hours", "cpu seconds"))}
            rows.append({"chapter": name} | {k: row[k] for k in ("what", "batch", "seconds", "cpu seconds")}
                        | {"runs": runs} | hours | {"peak GiB": row["peak GiB"], "where": place(record)})
    return pd.DataFrame(rows, columns=["chapter", "what", "batch", "seconds", "cpu seconds", "runs", "hours",
                                       "core hours", "peak GiB", "where"])


def paper(found: list[dict]) -> pd.DataFrame:
    """What each chapter's plan at profile paper takes, one row for each place: chapter, planned runs, peak GiB, hours
    (of a processor that was busy: the cores' hours over the threads), where."""
    rows, table = [], trainings(found)
    for record in of(found, "paper"):
        by_cores = busy(record) and not record["gpu"]
        for chapter, some in table[table["where"] == place(record)].groupby("chapter"):
            hours = some["core hours"].sum() / record["threads"] if by_cores else some["hours"].sum()
            rows.append([chapter, len(plan(chapter, "paper")), some["peak GiB"].max(), hours, place(record)])
    columns = ["chapter", "planned runs", "peak GiB", "hours", "where"]
    return pd.DataFrame(rows, columns=columns).sort_values("chapter", kind="stable", ignore_index=True)


def paper_cost(chapter: str, found: list[dict] | None = None) -> None:
    """Print for each place what a chapter costs at profile paper, and what its steps take; else that it was not
    measured."""
    found = benchmarks() if found is None else found
    table = paper(found).query("chapter == @chapter")
    if table.empty:
        print(f"{chapter} at profile paper: not measured yet; python -m benchmarks --only paper")
    for chapter, runs, memory, hours, where in table.itertuples(index=False):
        about = f"{float(f'{hours:.2g}'):,.0f} hours of training on {where}"
        print(f"{chapter} at profile paper: {runs:,} planned runs, about {about}; at most {memory:.1f} GiB.")
        some = trainings(found).query("chapter == @chapter and where == @where").to_dict("records")
        said = [f"{row['what']} {row['seconds']:.2g} s ({row['batch']} rows)" for row in some]
        print(f"A step: {', '.join(said)}.")


def runs(profile: str) -> list[Record]:
    """Every recorded run of a profile."""
    store = Store()
    return [r for chapter in store.chapters() for r in store.records(chapter) if r["spec"]["profile"] == profile]


def hours(records: list[Record]) -> pd.DataFrame:
    """Runs, median seconds of one and hours of all of them, by chapter, task and device."""
    rows = [{"chapter": r["spec"]["chapter"], "task": r["spec"]["task"], "device": r["device"], "seconds": r["seconds"]}
            for r in records]
    data = pd.DataFrame(rows, columns=["chapter", "task", "device", "seconds"])
    made = data.groupby(["chapter", "task", "device"])["seconds"].agg(["size", "median", "sum"]).reset_index()
    made["sum"] /= 3600
    return made.rename(columns={"size": "runs", "median": "median seconds", "sum": "hours"})
