"""What chapter 01 shows of its runs: sizes, masks, calibration, students of sparse teachers. Reads records only."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from kdutils import claims, figures, profiles, tables, tasks, verdicts
from kdutils.records import Store

MEASURES = ("score", "confidence", "entropy", "nll", "ece")
NAMES = {"score": "score", "confidence": "confidence", "entropy": "entropy", "nll": "NLL", "ece": "ECE"}
SHOWN = {"random_unstructured": (0.0, 0.05, 0.1), "random_structured": (0.3,)}  # amounts of the reliability diagram
KIND = {"random_unstructured": "weights zeroed", "random_structured": "heads and neurons removed"}


def measured(frame: pd.DataFrame) -> pd.DataFrame:
    """`tables.measured` with confidence, entropy, nll and ece where the score is read (NaN for a regression), and
    `paper`, the paper's metric on dev."""
    calibration = {name: f"{{split}}_{name}" for name in MEASURES[1:]}
    return tables.measured(frame, ("amount", "layers", "size"), paper="dev_{paper}", **calibration)


def masks(data: pd.DataFrame, method: str) -> pd.DataFrame:
    """The runs of a kind of mask by amount, with the dense teacher, under every mask's seed, as amount 0."""
    dense = data[(data["method"] == "random_unstructured") & (data["amount"] == 0)]
    return pd.concat([dense, data[(data["method"] == method) & (data["amount"] > 0)]]).sort_values("amount")


def main_task(data: pd.DataFrame) -> str:
    """The first task with probabilities that has sparsified teachers, or else any runs."""
    known = data[data["confidence"].notna()]
    sparse = known[known["amount"].notna()]
    return (sparse if len(sparse) else known if len(known) else data)["task"].iloc[0]


def judged(data: pd.DataFrame, profile: str) -> pd.DataFrame:
    """`tables.judged` of the chapter, with seeds planned and tasks planned (`on`)."""
    planned = {claim["id"]: {"seeds": claim["seeds"], "on": ", ".join(claim["tasks"])}
               for claim in claims.load()["claims"]}
    return tables.judged(data, "01_pilot", profile).join(pd.DataFrame.from_dict(planned, orient="index"))


def constant(profile: str) -> dict[tuple[str, str], float]:
    """Points of a constant answer by (task, "score" or "paper"), from any record of the task that holds them."""
    found = verdicts.results(profile)
    values = {}
    for name in profiles.task_names(profile):
        task, rows = tasks.get(name), found[found["task"] == name] if len(found) else found
        columns = {"score": [f"extra_majority_{split}_{task.verdict_metric}" for split in ("test", "dev")],
                   "paper": [f"extra_majority_dev_{task.metrics[0]}"]}
        for kind, options in columns.items():
            known = [rows[c].dropna().iloc[0] for c in options if c in rows and rows[c].notna().any()]
            values[name, kind] = 100 * known[0] if known else math.nan
    return values


# ------------------------------------------------------------------------------------------------------------- tables


def _means(runs: pd.DataFrame, names: tuple[str, ...] = MEASURES) -> dict[str, str]:
    """Each measure of some runs as text, then n; a regression's missing ones are dashes."""
    digits = {name: 2 if figures.scale(name) == 1 else 1 for name in names}
    spread = {name: figures.interval(runs[name] * figures.scale(name)) for name in names}
    text = {name: figures.plus_minus(*spread[name], digits[name]).split(" (")[0] for name in names}
    text = {name: value.replace(" ", "\N{NO-BREAK SPACE}") for name, value in text.items()}
    return {NAMES.get(name, name): value for name, value in text.items()} | {"n": str(len(runs))}


def sizes(data: pd.DataFrame, profile: str) -> pd.DataFrame:
    """One row a task and size, the largest first: parameters of the encoder in millions, score, the paper's metric on
    dev and confidence; then what a constant answer scores."""
    rows, floor = [], constant(profile)
    for task, part in data[data["method"] == "finetune"].groupby("task", sort=False):
        for _, runs in sorted(part.groupby("extra_encoder"), reverse=True):
            first = runs.iloc[0]
            who = f"{int(first['layers'])} layers" + (f" ({first['size']})" if pd.notna(first["size"]) else "")
            rows.append({"task": task, "model": who, "millions": f"{first['extra_encoder'] / 1e6:.2f}"}
                        | _means(runs, ("score", "paper", "confidence")))
        values = {kind: figures.number(floor[task, kind]) for kind in ("score", "paper")}
        rows.append({"task": task, "model": "constant answer"} | values)
    names = {"paper": "paper's metric, dev"}
    return pd.DataFrame(rows).fillna(figures.DASH).rename(columns=names)


def amounts(data: pd.DataFrame, method: str, task: str) -> pd.DataFrame:
    """One row an amount: every measure over the masks; the dense teacher, the same under every seed, counts once."""
    runs = masks(data[data["task"] == task], method)
    runs = runs[(runs["amount"] > 0) | ~runs["amount"].duplicated()]
    names = {"paper": f"{tasks.get(task).metrics[0]}, dev"}
    return pd.DataFrame([{"share": f"{100 * amount:g} %"} | _means(part, ("paper", *MEASURES))
                         for amount, part in runs.groupby("amount")]).rename(columns=names)


def compared(data: pd.DataFrame) -> pd.DataFrame:
    """Each amount's loss against the dense teacher, in points, by kind and task: score and confidence."""
    rows = []
    for method, kind in KIND.items():
        runs = masks(data, method)
        for (task, amount), part in runs[runs["amount"] > 0].groupby(["task", "amount"], sort=False):
            dense = runs[(runs["task"] == task) & (runs["amount"] == 0)]
            rows.append({"task": task, "what": kind, "share": f"{100 * amount:g} %"}
                        | {name: tables.said(tables.versus(part, dense, name)) for name in ("score", "confidence")})
    return pd.DataFrame(rows, columns=["task", "what", "share", "score", "confidence"])


def taught(data: pd.DataFrame) -> dict[str, dict]:
    """For each task and amount: the students of the sparse teachers minus those of the dense one, paired by seed."""
    runs, found = data[data["method"] == "distil_from_sparse"], {}
    for (task, amount), part in runs.groupby(["task", "amount"]):
        dense = runs[(runs["task"] == task) & (runs["amount"] == 0)]
        if amount and len(dense):
            found[f"{task}, {100 * amount:g} % zeroed"] = tables.versus(part, dense)
    return found


def students(data: pd.DataFrame, profile: str) -> pd.DataFrame:
    """One row a task and amount: students' score, their agreement with the dense teacher, their teachers' own score;
    then a constant answer's."""
    rows, floor = [], constant(profile)
    found, teachers = data[data["method"] == "distil_from_sparse"], masks(data, "random_unstructured")
    for task, part in found.groupby("task", sort=False):
        for amount, runs in part.groupby("amount"):
            own = teachers[(teachers["task"] == task) & (teachers["amount"] == amount)]
            own = own if amount else own.head(1)
            taught, teacher = _means(runs, ("score", "agreement")), _means(own, ("score",))
            rows.append({"task": task, "zeroed": f"{100 * amount:g} %", "students": taught["score"],
                         "agreement": taught["agreement"], "n": taught["n"], "teacher": teacher["score"]})
        rows.append({"task": task, "zeroed": "constant answer", "students": figures.number(floor[task, "score"])})
    columns = ["task", "zeroed", "students", "agreement", "n", "teacher"]
    return pd.DataFrame(rows, columns=columns).fillna(figures.DASH)


def choices(profile: str) -> pd.DataFrame:
    """The trials of layers, rate and epochs: score on held-out rows, and which settings every other run has."""
    rows = []
    for record in Store().records("00_choices"):
        spec = record["spec"]
        if spec["profile"] == profile:
            metric, held = tasks.get(spec["task"]).verdict_metric, record["metrics"]["held"]
            settings = spec["settings"]
            taken = profiles.settings(profile, spec["task"])
            mine = tuple(settings["layers"]), settings["lr"], settings["epochs"]
            rows.append({"task": spec["task"], "layers": ", ".join(map(str, settings["layers"])),
                         "rate": f"{settings['lr']:.0e}".replace("e-0", "e-"), "epochs": settings["epochs"],
                         "held": 100 * held[metric], "metric": metric,
                         "taken": "yes" if mine == (taken.layers, taken.lr, taken.epochs) else ""})
    table = pd.DataFrame(rows, columns=["task", "layers", "rate", "epochs", "metric", "held", "taken"])
    return table.sort_values(["task", "layers", "rate", "epochs"]).reset_index(drop=True)


# ------------------------------------------------------------------------------------------------------------ figures


def _pair(data: pd.DataFrame, x: str, label: str):
    """Score and confidence over `x`, one line a task."""
    fig, axes = figures.panels(2)
    for axis, name in zip(axes, ("score", "confidence"), strict=True):
        known = data[data[name].notna()]
        if len(known):
            figures.curve(axis, known.assign(**{x: known[x].astype(float)}), x, name, "task")
        else:
            figures.nothing([axis])
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axis.set(xlabel=label, ylabel=f"{NAMES[name]}, points")
    if axes[1].get_legend():
        axes[1].get_legend().remove()
    return fig


def over_sizes(data: pd.DataFrame):
    return _pair(data[data["method"] == "finetune"], "layers", "encoder layers")


def over_amounts(data: pd.DataFrame, method: str):
    runs = masks(data, method)
    runs = runs[runs["task"].isin(runs.loc[runs["amount"] > 0, "task"])]
    return _pair(runs.assign(share=100 * runs["amount"].astype(float)), "share", f"{KIND[method]}, %")


def in_words(data: pd.DataFrame, by: str, what: str) -> str:
    """What `_pair` shows: score and confidence at both ends, for each task that has two."""
    said = []
    for task, part in data[data["score"].notna()].groupby("task", sort=False):
        if part[by].nunique() < 2:
            continue
        ends = [part[part[by] == end] for end in (part[by].min(), part[by].max())]
        score = " to ".join(f"{100 * end['score'].mean():.1f}" for end in ends)
        sure = " to ".join(f"{100 * end['confidence'].mean():.1f}" for end in ends)
        said.append(f"{task}: score {score}" + ("" if "nan" in sure else f", confidence {sure}"))
    return tables.listed(f"Score and confidence over {what}, smallest to largest.", said, "No runs yet") + "."


def _bars(runs: pd.DataFrame) -> pd.DataFrame:
    """Share, confidence and accuracy of each tenth, over the masks' rows together."""
    share = np.stack(runs["extra_reliability_share"])
    weight = np.maximum(share.sum(0), 1e-12)
    mean = {name: (share * np.stack(runs[f"extra_reliability_{name}"])).sum(0) / weight
            for name in ("confidence", "accuracy")}
    return pd.DataFrame({"share": share.mean(0)} | mean)


def diagrams(data: pd.DataFrame, task: str) -> dict[str, pd.DataFrame]:
    """The bars of each reliability diagram that has runs, by title."""
    found = {}
    for method, options in SHOWN.items():
        for amount in options:
            runs = data[(data["task"] == task) & (data["method"] == method) & (data["amount"] == amount)]
            if len(runs):
                found["dense" if not amount else f"{100 * amount:g} % {KIND[method]}"] = _bars(runs)
    return found


def reliability(data: pd.DataFrame, task: str):
    """Accuracy over confidence before and after; a dot's area is the share of rows in its tenth."""
    found = diagrams(data, task)
    fig, axes = figures.panels(max(1, len(found)), width=1.9 * max(2, len(found)), height=2.5, sharex=True, sharey=True)
    for axis, (title, bars) in zip(axes, found.items(), strict=False):
        bars = bars[bars["share"] > 0]
        axis.plot([0, 100], [0, 100], color="#888888", linewidth=1)
        axis.plot(100 * bars["confidence"], 100 * bars["accuracy"], color=figures.COLOURS[0], linewidth=1)
        axis.scatter(100 * bars["confidence"], 100 * bars["accuracy"], s=400 * bars["share"], color=figures.COLOURS[0])
        axis.set_title(title.replace(" heads", "\nheads").replace(" weights", "\nweights"), fontsize=9)
        axis.set(xlim=(45, 102), ylim=(-3, 103), xlabel="confidence, %")
    axes[0].set_ylabel("accuracy, %") if found else figures.nothing(axes[:1])
    return fig


def reliability_in_words(data: pd.DataFrame, task: str) -> str:
    parts = [f"{title}: mean confidence {100 * (b['share'] * b['confidence']).sum():.1f} against accuracy "
             f"{100 * (b['share'] * b['accuracy']).sum():.1f}" for title, b in diagrams(data, task).items()]
    return tables.listed(f"Reliability diagrams of {task}, accuracy over confidence.", parts, "No runs yet") + "."


def differences(estimates: dict[str, dict]):
    label = "students of the sparse teacher minus students of the dense one, points"
    return figures.differences(estimates, label, 0.4 * max(1, len(estimates)) + 0.9)


def differences_in_words(estimates: dict[str, dict]) -> str:
    parts = [f"{name} {tables.said(found)}" for name, found in estimates.items()]
    lead = "Students of sparse teachers minus those of the dense one, points."
    return tables.listed(lead, parts, "No runs yet") + "."
