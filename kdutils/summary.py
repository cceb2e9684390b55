"""Verdicts as text for readers: rows of tables, and the summary that the README and the front page share.

    python -m kdutils.summary            print it
    python -m kdutils.summary --write    put it between the markers of both files
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from kdutils import claims as published
from kdutils import experiments, figures, profiles, tasks, verdicts
from kdutils.figures import DASH
from kdutils.records import Store, look_up, repository, write_atomically

SAID = {  # of one claim, of several
    "holds": ("holds", "hold"), "contradicted": ("is contradicted", "are contradicted"),
    "undecided": ("is undecided", "are undecided"), "no runs yet": ("has no runs yet", "have no runs yet"),
}
LIKE = "ours, in its metric"
INSIDE = "in our interval?"
FILES = ("README.md", "book/intro.md")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def interval(effect: float, low: float, high: float, digits: int = 1) -> str:
    """An effect and, where it has one, its 95 % interval; an end that would round to zero, on which a verdict may hang,
    with a digit more."""
    def end(value):
        near = 0 < abs(value) < 0.5 * 10**-digits
        return figures.number(value, digits + near, sign=True)

    effect = figures.number(effect, digits, sign=True)
    return effect if pd.isna(low) else f"{effect}\u00a0[{end(low)},\u00a0{end(high)}]"


def against_the_paper(row) -> str:
    """Whether the printed effect lies in our interval in the same metric, both on the pooled tasks that the paper
    prints; if not, which is larger."""
    printed = row.paper_here
    if pd.isna(printed) or pd.isna(row.like_low):
        return DASH
    return "no, ours smaller" if row.like_high < printed else "no, ours larger" if row.like_low > printed else "yes"


def some_tasks(row: Mapping) -> str:
    """The tasks that a claim's effect in the paper's metric is on, where the paper prints only some of those pooled."""
    on = row["like_tasks"]
    return "" if on in ((), row["tasks"]) else f" on {', '.join(map(tasks.title, on))}"


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """`verdicts.verdicts(...)[0]` as text, one row a claim: the paper's effect, printed and on tasks that both have;
    ours there in the paper's metric, and whether the paper's lies in it; ours as judged, each with its 95 % interval;
    n of planned, and tasks of planned where some are missing; the smallest effect that could have been seen; the
    verdict, whether it survives Holm's correction, and the section that shows it."""
    def row(r):
        digits = 2 if r.kind == "correlation" else 1
        survives = DASH if r.verdict in ("undecided", "no runs yet") else "yes" if r.after_holm == r.verdict else "no"
        return {
            "no.": r.number, "claim": r.sentence, "verdict": r.verdict, "Holm": survives,
            "paper": figures.number(r.paper_effect, digits, sign=True),
            "same tasks": figures.number(r.paper_here, sign=True),
            LIKE: interval(r.like_effect, r.like_low, r.like_high) + some_tasks(r._asdict()),
            INSIDE: against_the_paper(r),
            "ours": interval(r.effect, r.low, r.high, digits),
            "tasks": ", ".join(map(tasks.title, r.tasks)) or DASH,
            "n": f"{r.n}/{r.planned}" + (f", {len(r.tasks)} of {r.planned_tasks} tasks" if partial(r) else ""),
            "seen": figures.number(r.null + r.smallest, digits),
            "chapter": f"{r.chapter}#{r.section}",
        }

    columns = ["no.", "claim", "verdict", "Holm", "paper", "same tasks", LIKE, INSIDE, "ours", "tasks", "n", "seen",
               "chapter"]
    return pd.DataFrame([row(r) for r in table.itertuples()], columns=columns)


def partial(row) -> bool:
    """Whether a claim is judged on fewer tasks than were planned for it."""
    return 0 < len(row.tasks) < row.planned_tasks


def merged(text: pd.DataFrame, line: str = "; ") -> pd.DataFrame:
    """`shown` in three columns less: the paper's effect with that on the same tasks in brackets, ours in its metric
    and, after `line`, whether it is smaller or larger than the paper's, a verdict that survives Holm with a dagger."""
    differs = (text["same tasks"] != DASH) & (text["same tasks"] != text["paper"])
    beside = text[INSIDE].str.removeprefix("no, ").where(text[INSIDE].str.startswith("no"), "")
    return text.assign(**{
        "paper": text["paper"] + (" (" + text["same tasks"] + ")").where(differs, ""),
        LIKE: text[LIKE] + (line + beside).where(beside != "", ""),
        "verdict": text["verdict"] + pd.Series("\u00a0†", text.index).where(text["Holm"] == "yes", ""),
    }).drop(columns=["same tasks", INSIDE, "Holm"])


def said(table: pd.DataFrame) -> str:
    """How many claims got each verdict, in words."""
    counts = table["verdict"].value_counts().to_dict()
    return ", ".join(f"{n} {words[n > 1]}" for name, words in SAID.items() if (n := counts.get(name, 0)))


def ruled_out(table: pd.DataFrame) -> tuple[int, int]:
    """Of the undecided claims: how many have a printed effect to compare with, and for how many of these our interval
    lies below it."""
    found = [against_the_paper(row) for row in table[table["verdict"] == "undecided"].itertuples()]
    return sum(one != DASH for one in found), found.count("no, ours smaller")


def by_the_papers_metric(table: pd.DataFrame) -> tuple[int, int]:
    """How many of the contradicted claims would be undecided, and how many of the undecided with an estimate decided,
    if the rule read the metric that the paper prints, on the tasks that it prints."""
    would = pd.Series([verdicts.verdict({"n": r.n, "low": r.like_low, "high": r.like_high}, r.null)
                       for r in table.itertuples()], table.index)
    known = table["like_low"].notna()
    was, decided = table["verdict"], would.isin(("holds", "contradicted"))
    return int((known & (was == "contradicted") & ~decided).sum()), int((known & (was == "undecided") & decided).sum())


def reach(profile: str, store: Store | None = None) -> str:
    """How many of the runs that claims read are recorded, by task, and how many of all that are planned."""
    planned = [spec for chapter in experiments.CHAPTERS for spec in dict.fromkeys(experiments.plan(chapter, profile))]
    missing = set(look_up(planned, store)[1])
    needed = verdicts.serving(planned)
    every, made = (Counter(spec.task for spec in needed if spec not in some) for some in (set(), missing))
    each = ", ".join(f"{tasks.title(task)} {made[task]:,} of {every[task]:,}" for task in profiles.task_names(profile)
                     if every[task])
    return (f"{made.total():,} of the {len(needed):,} runs that claims read are made ({each}), and with ablations, "
            f"controls and further tasks {len(planned) - len(missing):,} of {len(planned):,}")


def apart(parts: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Both of `verdicts.verdicts(...)` as text, one row a claim and task: ours as judged there, n, the smallest effect
    that could have been seen, and the verdict that the task alone would give."""
    about = table.set_index("claim")
    rows = [{
        "claim": f"{about.loc[r.claim, 'number']}. {about.loc[r.claim, 'short']}", "task": tasks.title(r.task),
        "ours": interval(r.effect, r.low, r.high), "n": f"{r.n}/{r.planned}",
        "seen": figures.number(about.loc[r.claim, "null"] + r.smallest), "verdict": r.verdict,
    } for r in parts.itertuples()]
    return pd.DataFrame(rows, columns=["claim", "task", "ours", "n", "seen", "verdict"])


def summary(profile: str = "mini") -> str:
    """The headline claims as a markdown table, from published records: what the README and the front page show. (Runs
    that are planned only once others have chosen, are planned from the working store too.)"""
    published_only = Store(runs="book/records")  # no single-run files there, so only the published lines are read
    data = verdicts.results(profile, published_only)
    table, _ = verdicts.verdicts(data, profile)
    columns = ["claim", "verdict", "paper", LIKE, "ours, as judged", "n"]
    text = merged(shown(table), "<br>").rename(columns={"ours": "ours, as judged"})
    rows = text.loc[table["headline"].to_numpy(), columns].to_numpy().tolist()
    lines = [f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows]]
    papers = published.load()["papers"]
    each = "; ".join(f"{papers[paper]['short']}: {said(part)}" for paper, part in table.groupby("paper", sort=False))
    compared, excluded = ruled_out(table)
    fewer = sum(partial(row) for row in table.itertuples())
    below = f"""The headline claims, in points. *Paper*: the printed effect, in brackets on the tasks that both have.
*Ours, in its metric*: on those tasks, by the metric that the paper prints, on our test rows after the last epoch, with
a 95 % interval; *ours smaller* (or *larger*) where that does not hold the paper's effect. *Ours, as judged*: what the
verdict reads, on all tasks that have run; MRPC counts there by Matthews correlation, which moves several times as far
as F1. *n*: seeds that these tasks share, of those planned, and how many of the planned tasks they are; until all are
there a verdict is provisional. †: it survives Holm's correction for testing all claims.

{stark_rests_on(data, table)}

Of {len(table)} claims at `{profile}`, {said(table)} ({each}); some are controls of ours, which no paper makes.
Undecided does not mean unknown: {compared} of those have a printed effect, and for {excluded} our interval excludes one
as large. So far {reach(profile, published_only)}; {fewer} claims are judged on fewer tasks than planned."""
    return "\n".join([*lines, "", below])


def stark_rests_on(data: pd.DataFrame, table: pd.DataFrame) -> str:
    """What the first verdict on STARK hangs on, as chapter 02 says it."""
    from kdutils import tables  # which, as the page, shows verdicts itself
    from kdutils.pages import stark

    (said,) = table.loc[table["claim"] == "stark-beats-kd-dropped", "verdict"]
    found = tables.measured(data[data["chapter"] == "02_stark"], stark.ARGUMENTS)
    return f"STARK's first verdict rests on one choice of sparsity a task. {stark.scope(found, said)}"


def write_summary(path: Path, text: str) -> bool:
    """Put `text` between the markers of a file; returns whether that changed it. ValueError where they are missing."""
    old = path.read_text(encoding="utf-8")
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path.name}: got no {BEGIN} … {END}; allowed: one pair of these markers")
    new = f"{before}{BEGIN}\n\n{text}\n{END}{after}"  # a table begins after an empty line
    if new != old:
        write_atomically(path, new)
    return new != old


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kdutils.summary", description=__doc__.splitlines()[0])
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
