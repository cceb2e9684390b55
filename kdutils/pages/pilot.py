"""What chapter 01 shows of its runs: sizes, masks, calibration, students of sparse teachers. Reads records only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import NullLocator

from kdutils import claims, figures, profiles, tables, tasks
from kdutils.experiments import choices as trials
from kdutils.experiments import common
from kdutils.figures import PERCENT, percent
from kdutils.records import look_up

MEASURES = ("score", "confidence", "entropy", "nll", "ece")
NAMES = {"score": "score", "confidence": "confidence", "entropy": "entropy", "nll": "NLL", "ece": "ECE"}
SHOWN = {"random_unstructured": (0.0, 0.05, 0.1), "random_structured": (0.3,)}  # amounts of the reliability diagram
PAPERS = "paper's metric, dev"
OVER_AMOUNTS = ("score", "confidence", "nll", "ece")
MILLIONS = "encoder, millions"
LESS = "less the dense teacher's"
KIND = {"random_unstructured": "weights zeroed", "random_structured": "units removed"}
WHAT = {"finetune": "fine-tuned models", "random_unstructured": "teachers, weights zeroed",
        "random_structured": "teachers, units removed", "distil_from_sparse": "students of teachers, weights zeroed"}


def measured(frame: pd.DataFrame) -> pd.DataFrame:
    """`tables.measured` with accuracy, confidence, entropy, nll and ece where the score is read (NaN for a regression),
    and `paper`, the paper's metric on dev, and a constant answer's."""
    calibration = {name: f"{{split}}_{name}" for name in ("accuracy", *MEASURES[1:])}
    return tables.measured(frame, ("amount", "layers", "size"), paper="dev_{paper}",
                           paper_majority="extra_majority_dev_{paper}", **calibration)


def masks(data: pd.DataFrame, method: str) -> pd.DataFrame:
    """The runs of a kind of mask by amount, with the dense teacher, under every mask's seed, as amount 0."""
    dense = data[(data["method"] == "random_unstructured") & (data["amount"] == 0)]
    sparse = data[(data["method"] == method) & (data["amount"] > 0)]
    return pd.concat([dense, sparse]).sort_values("amount", kind="stable")


def counts(data: pd.DataFrame) -> pd.DataFrame:
    """How many runs each task has of a method, under names that people read; a share of none is among those of zeroed
    weights."""
    runs = data.assign(runs=data["method"].map(WHAT)).groupby(["runs", "task"], sort=False).size()
    return runs.unstack("task", fill_value=0)[list(dict.fromkeys(data["task"]))].reset_index()


def main_task(data: pd.DataFrame) -> str:
    """Of the tasks with probabilities the one that has most runs of sparsified teachers, or else most runs."""
    known = data[data["confidence"].notna()]
    sparse = known[known["amount"].notna()]
    return (sparse if len(sparse) else known if len(known) else data)["task"].value_counts().index[0]


def sized(data: pd.DataFrame) -> pd.DataFrame:
    """The fine-tuned models, with `millions` of parameters in their encoders."""
    runs = data[data["method"] == "finetune"]
    return runs.assign(millions=runs["extra_encoder"] / 1e6)


def judged(data: pd.DataFrame, profile: str) -> pd.DataFrame:
    """`tables.judged` of the chapter, with seeds planned and tasks planned (`on`)."""
    planned = {claim["id"]: {"seeds": claim["seeds"], "on": ", ".join(claim["tasks"])}
               for claim in claims.load()["claims"]}
    return tables.judged(data, "01_pilot", profile).join(pd.DataFrame.from_dict(planned, orient="index"))


def constant(data: pd.DataFrame, task: str) -> dict[str, str]:
    """What a constant answer scores on a task, in points, under the names of the measures."""
    rows = data[data["task"] == task]
    found = {"score": rows["majority"].mean(), "paper": rows["paper_majority"].mean()}
    return {name: figures.number(100 * value) for name, value in found.items()}


def headed(task: str) -> str:
    """A task with its score's metric and, where it is another, the paper's."""
    score, paper = tasks.get(task).verdict_metric, tasks.get(task).metrics[0]
    return f"{task}: {score}" + (f", paper's {paper}" if paper != score else "")


# ------------------------------------------------------------------------------------------------------------- tables


def _means(runs: pd.DataFrame, names: tuple[str, ...] = MEASURES) -> dict[str, str]:
    """Each measure of some runs as text, then n; a regression's missing ones are dashes."""
    digits = {name: 2 if figures.scale(name) == 1 else 1 for name in names}
    spread = {name: figures.interval(runs[name] * figures.scale(name)) for name in names}
    text = {name: figures.plus_minus(*spread[name], digits[name]).split(" (")[0] for name in names}
    text = {name: value.replace(" ", "\N{NO-BREAK SPACE}") for name, value in text.items()}
    return {NAMES.get(name, name): value for name, value in text.items()} | {"n": str(len(runs))}


def sizes(data: pd.DataFrame) -> pd.DataFrame:
    """One row a task and size, the largest first: parameters of the encoder in millions, score, the paper's metric on
    dev and confidence; then what a constant answer scores."""
    rows = []
    for task, part in data[data["method"] == "finetune"].groupby("task", sort=False):
        for _, runs in sorted(part.groupby("extra_encoder"), reverse=True):
            first = runs.iloc[0]
            count = int(first["layers"])
            who = f"{count} layer{'s' * (count > 1)}" + (f" ({first['size']})" if pd.notna(first["size"]) else "")
            rows.append({"task": headed(task), "model": who, MILLIONS: f"{first['extra_encoder'] / 1e6:.2f}"}
                        | _means(runs, ("score", "paper", "confidence")))
        rows.append({"task": headed(task), "model": "constant answer"} | constant(data, task))
    return pd.DataFrame(rows).fillna(figures.DASH).rename(columns={"paper": PAPERS})


def sparsified(data: pd.DataFrame, method: str) -> pd.DataFrame:
    """`masks` of the tasks that have any above 0; the dense teacher, the same under every seed, counts once."""
    runs = masks(data, method)
    runs = runs[runs["task"].isin(runs.loc[runs["amount"] > 0, "task"])]
    return runs[(runs["amount"] > 0) | ~runs[["task", "amount"]].duplicated()]


def amounts(data: pd.DataFrame, method: str) -> pd.DataFrame:
    """One row a task and amount: every measure over the masks; then a constant answer's."""
    rows = []
    for task, runs in sparsified(data, method).groupby("task", sort=False):
        rows += [{"task": headed(task), "share": percent(amount, 1)} | _means(part, ("paper", *MEASURES))
                 for amount, part in runs.groupby("amount")]
        rows.append({"task": headed(task), "share": "constant answer"} | constant(data, task))
    return pd.DataFrame(rows).fillna(figures.DASH).rename(columns={"paper": PAPERS})


def honesty_in_words(data: pd.DataFrame, amount: float = 0.1) -> str:
    """For each task with probabilities what zeroing this share does to confidence, its excess over accuracy, NLL and
    calibration error."""
    runs, parts = sparsified(data, "random_unstructured"), []
    for task, part in runs[runs["confidence"].notna()].groupby("task", sort=False):
        before, after = (part.loc[part["amount"] == share, ["accuracy", *MEASURES]].mean() for share in (0.0, amount))
        if before.isna().any() or after.isna().any():
            continue
        excess = [figures.number(100 * (at["confidence"] - at["accuracy"]), sign=True) for at in (before, after)]
        moves = [f"{NAMES[name]} goes from {before[name] * figures.scale(name):.{digits}f} to "
                 f"{after[name] * figures.scale(name):.{digits}f}"
                 for name, digits in {"confidence": 1, "nll": 2, "ece": 1}.items()]
        ece = part.groupby("amount")["ece"].mean() * 100
        parts.append(f"on {tasks.title(task)} {', '.join(moves)} (at its lowest {ece.min():.1f}, with "
                     f"{percent(ece.idxmin(), 1)} zeroed), and confidence less accuracy from {excess[0]} to "
                     f"{excess[1]}")
    return tables.listed(f"Here, at {percent(amount, 1)} zeroed:", parts, "no runs yet") + "."


def compared(data: pd.DataFrame) -> pd.DataFrame:
    """What each kind and share of sparsity takes off the dense teacher's score, in points, by task; last what a
    constant answer lacks of it."""
    rows = []
    for method, kind in KIND.items():
        runs = masks(data, method)
        for amount, part in runs[runs["amount"] > 0].groupby("amount"):
            lost = {task: tables.versus(some, runs[(runs["task"] == task) & (runs["amount"] == 0)])
                    for task, some in part.groupby("task", sort=False)}
            rows.append({"what": kind, "share": percent(amount, 1)}
                        | {task: tables.said(found) for task, found in lost.items()})
    dense = data[(data["method"] == "random_unstructured") & (data["amount"] == 0)].groupby("task", sort=False)
    usual = data.groupby("task")["majority"].mean()  # which not every run recorded
    least = {task: figures.number(100 * (usual[task] - runs["score"].mean()), sign=True) for task, runs in dense}
    rows += [{"what": "constant answer"} | least] if rows else []
    return pd.DataFrame(rows).fillna(figures.DASH)


def scattered_or_bundled(data: pd.DataFrame) -> str:
    """At how many tasks and shares, of those that both kinds of sparsity have, zeroed weights cost more score."""
    means = [masks(data, method).query("amount > 0").groupby(["task", "amount"])["score"].mean() for method in KIND]
    less = (means[1] - means[0]).dropna()  # units removed less weights zeroed: above zero, scattered zeros cost more
    if less.empty:
        return "Here: no runs yet."
    shares = ", ".join(f"{100 * share:g}" for share in sorted(set(less.index.get_level_values("amount"))))
    names = ", ".join(map(tasks.title, dict.fromkeys(data.loc[data["task"].isin(less.index.levels[0]), "task"])))
    return (f"Here, at {shares}{PERCENT} and on {names}, scattered zeros cost more on average in {(less > 0).sum()} of "
            f"{len(less)} cases.")


def taught(data: pd.DataFrame) -> dict[str, dict]:
    """For each task and amount: the students of the sparse teachers minus those of the dense one, paired by seed."""
    runs, found = data[data["method"] == "distil_from_sparse"], {}
    for task, some in runs.groupby("task", sort=False):
        dense = some[some["amount"] == 0]
        for amount, part in some.groupby("amount"):
            if amount and len(dense):
                found[f"{tasks.title(task)}, {percent(amount, 1)} zeroed"] = tables.versus(part, dense)
    return found


def students(data: pd.DataFrame) -> pd.DataFrame:
    """One row a task and amount: students' score, what it is less that of the dense teacher's students, their agreement
    with the dense teacher, the score of the teachers that taught them (under their masks); then a constant answer's."""
    rows = []
    found, teachers = data[data["method"] == "distil_from_sparse"], masks(data, "random_unstructured")
    for task, part in found.groupby("task", sort=False):
        first = {"task": f"{task}: {tasks.get(task).verdict_metric}"}
        for amount, runs in part.groupby("amount"):
            own = teachers[(teachers["task"] == task) & (teachers["amount"] == amount)]
            own = own[own["seed"].isin(runs["seed"])] if amount else own.head(1)
            taught, teacher = _means(runs, ("score", "agreement")), _means(own, ("score",))
            less = tables.versus(runs, part[part["amount"] == 0]) if amount else None
            rows.append(first | {"zeroed": percent(amount, 1), "students": taught["score"],
                         LESS: tables.said(less).rpartition(" (")[0] if less and less["n"] else figures.DASH,
                         "agreement": taught["agreement"], "n": taught["n"], "teacher": teacher["score"]})
        rows.append(first | {"zeroed": "constant answer", "students": constant(data, task)["score"]})
    columns = ["task", "zeroed", "students", LESS, "agreement", "n", "teacher"]
    return pd.DataFrame(rows, columns=columns).fillna(figures.DASH)


def taught_in_words(data: pd.DataFrame, amount: float = 0.1) -> str:
    """What teachers lose by this share of zeroed weights and what their students lose by it, in points, by task."""
    parts, teachers = [], masks(data, "random_unstructured")
    runs = data[data["method"] == "distil_from_sparse"]
    for task, part in runs[runs["amount"] == amount].groupby("task", sort=False):
        dense, own = (some[(some["task"] == task) & (some["amount"] == 0)] for some in (runs, teachers))
        sparse = teachers[(teachers["task"] == task) & (teachers["amount"] == amount)]
        lost = tables.versus(own, sparse[sparse["seed"].isin(part["seed"])])
        if lost["n"] and len(dense):
            students = figures.number(tables.versus(dense, part)["effect"])
            parts.append(f"{tasks.title(task)} {figures.number(lost['effect'])} and {students}")
    return tables.listed(f"Here, points lost by teachers and by their students at {percent(amount, 1)} zeroed:", parts,
                         "no runs yet") + "."


def choices(profile: str) -> pd.DataFrame:
    """The trials between which layers and rate of students were chosen: score on held-out rows, and what won."""
    rows = []
    for task in profiles.task_names(profile):
        records, _ = look_up(trials.plan_choice(profile, task))
        taken = profiles.settings(profile, task)
        for record in sorted(records, key=lambda r: (r["spec"]["settings"]["layers"], r["spec"]["settings"]["lr"])):
            layers, rate = (record["spec"]["settings"][name] for name in ("layers", "lr"))
            rows.append({"task": task, "layers": ", ".join(map(str, layers)), "rate": _short(rate),
                         "metric": tasks.get(task).verdict_metric, "held": 100 * common.held(record),
                         "taken": "yes" if (tuple(layers), rate) == (taken.layers, taken.lr) else ""})
    return pd.DataFrame(rows, columns=["task", "layers", "rate", "metric", "held", "taken"])


def settled(profile: str) -> pd.DataFrame:
    """What was planned and not chosen, against its trials on held-out rows, by task."""
    names = {"epochs": "epochs of students", "teacher_lr": "the teacher's rate", "teacher_epochs": "its epochs"}
    rows = []
    for task in profiles.task_names(profile):
        for name, said in names.items():
            if found := trials.settled(name, profile, task):
                others = {value: figures.number(100 * score) for value, score in sorted(found.trials.items())}
                rows.append({"task": task, "what": said, "planned": _short(found.planned),
                             "its seeds": figures.plus_minus(100 * found.mean, 100 * found.spread, found.seeds),
                             "trials": ", ".join(f"{_short(value)}: {score}" for value, score in others.items()),
                             "it stands": "yes" if found.stands else "no"})
    return pd.DataFrame(rows, columns=["task", "what", "planned", "its seeds", "trials", "it stands"])


def _short(value: float) -> str:
    """A rate or a number of epochs."""
    return f"{value:.0e}".replace("e-0", "e-") if value < 1 else f"{value:g}"


# ------------------------------------------------------------------------------------------------------------ figures


def _over(data: pd.DataFrame, x: str, label: str, names: Sequence[str], err_style: str):
    """The measures `names` over `x`, a panel each: means with their intervals for each task that has two values or
    more, joined from three on."""
    data = data[data.groupby("task")[x].transform("nunique") > 1]
    if data.empty:
        return figures.placeholder()
    fig, axes = figures.panels(2, len(names) // 2)
    order = list(dict.fromkeys(data["task"]))
    for axis, name in zip(axes, names, strict=True):
        known = data[data[name].notna()]
        if len(known):
            figures.curve(axis, known, x, name, "task", hue_order=order, err_style=err_style)
            for line in axis.lines:
                if 0 < len(set(line.get_xdata())) < 3:  # two points are no curve; the legend's own line has none
                    line.set_linestyle("")
        else:
            figures.nothing([axis], "no probabilities")
        unit = "points" if figures.scale(name) == 100 else "nats"
        axis.set(xlabel=label, ylabel=f"{NAMES[name]}, {unit}")
    handles, labels = axes[0].get_legend_handles_labels()
    for axis in axes:
        if axis.get_legend():
            axis.get_legend().remove()
    fig.legend(handles, [tasks.title(label) for label in labels], loc="outside upper center", ncols=len(labels))
    return fig


def over_sizes(data: pd.DataFrame):
    """Score and confidence of the fine-tuned models over their encoders' parameters, in millions, on a log axis."""
    runs = sized(data)
    ticks = sorted(set(runs["millions"].round(3)))
    fig = _over(runs, "millions", "encoder parameters, millions", MEASURES[:2], "bars")
    for axis in fig.axes if len(ticks) > 1 else ():
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    return fig


def over_amounts(data: pd.DataFrame, method: str):
    """The teacher's score, confidence, NLL and ECE over the share of weights zeroed, or of units removed, in percent,
    with bands over masks."""
    runs = sparsified(data, method)
    shares = runs.assign(share=100 * runs["amount"].astype(float))
    return _over(shares, "share", f"{KIND[method]}, %", OVER_AMOUNTS, "band")


def in_words(data: pd.DataFrame, by: str, what: str, names: Sequence[str] = MEASURES[:2]) -> str:
    """What `_over` shows: the measures `names` at both ends, for each task that has two."""
    said = []
    for task, part in data[data["score"].notna()].groupby("task", sort=False):
        if part[by].nunique() < 2:
            continue
        ends = [part[part[by] == end] for end in (part[by].min(), part[by].max())]
        moves = {name: [end[name].mean() * figures.scale(name) for end in ends] for name in names}
        known = [f"{NAMES[name]} " + " to ".join(f"{v:.{1 if figures.scale(name) == 100 else 2}f}" for v in values)
                 for name, values in moves.items() if not np.isnan(values).any()]
        said.append(f"{tasks.title(task)}: {', '.join(known)}")
    lead = ", ".join(NAMES[name] for name in names).removeprefix("score")
    return tables.listed(f"Score{lead} over {what}, smallest to largest.", said, "No runs yet") + "."


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
                found["dense" if not amount else f"{percent(amount, 1)} {KIND[method]}"] = _bars(runs)
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
        axis.set_title(title.replace(" units", "\nunits").replace(" weights", "\nweights"), fontsize=9)
        axis.set(xlim=(45, 102), ylim=(-3, 103), xlabel="confidence, %")
    axes[0].set_ylabel("accuracy, %") if found else figures.nothing(axes[:1])
    return fig


def reliability_in_words(data: pd.DataFrame, task: str) -> str:
    parts = [f"{title}: mean confidence {100 * (b['share'] * b['confidence']).sum():.1f} against accuracy "
             f"{100 * (b['share'] * b['accuracy']).sum():.1f}" for title, b in diagrams(data, task).items()]
    lead = f"Reliability diagrams of {tasks.title(task)}, accuracy over confidence."
    return tables.listed(lead, parts, "No runs yet") + "."


def too_sure_in_words(data: pd.DataFrame, task: str) -> str:
    """Mean confidence less accuracy of each reliability diagram, in points."""
    excess = {title: 100 * (b["share"] * (b["confidence"] - b["accuracy"])).sum()
              for title, b in diagrams(data, task).items()}
    parts = [f"{title} {figures.number(points, sign=True)}" for title, points in excess.items()]
    lead = f"Here: mean confidence less accuracy on {tasks.title(task)}, in points (above zero a model is too sure):"
    return tables.listed(lead, parts, "no runs yet") + "."


def differences(estimates: dict[str, dict]):
    """A forest plot of `taught`, one row a task and share."""
    label = "the sparse teacher's students minus the dense one's, points"
    return figures.differences(estimates, label, 0.4 * max(1, len(estimates)) + 0.9)


def differences_in_words(estimates: dict[str, dict]) -> str:
    parts = [f"{name} {tables.said(found)}" for name, found in estimates.items()]
    lead = "Students of sparse teachers minus those of the dense one, points."
    return tables.listed(lead, parts, "No runs yet") + "."
