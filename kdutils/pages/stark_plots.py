"""What chapters 02 and 03 draw of their runs, each figure with its words. Reads records only."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdutils import figures, tables, tasks
from kdutils.figures import percent
from kdutils.pages.stark import at_half, grid, share_of, whole
from kdutils.tables import task_names


def curves(data: pd.DataFrame, student: str = "dropped"):
    """A row a task. Left: the student over sparsity, knowledgeable and random scores. Right: the same student with its
    teacher's score and mean confidence on one axis."""
    there = [name for name in task_names(data) if len(grid(data, name, student))]
    if not there:
        return figures.placeholder()
    fig, axes = figures.panels(2, len(there), height=2.4)
    for i, name in enumerate(there):
        left, right = axes[2 * i : 2 * i + 2]
        known, chance = whole(grid(data, name, student)), whole(grid(data, name, student, "random"))
        both = pd.concat([known.assign(scores="knowledgeable"), chance.assign(scores="random")])
        both["percent"] = both["sparsity"] * 100
        figures.curve(left, both, "percent", "score", "scores", legend=i == 0)
        long = both[both["scores"] == "knowledgeable"].melt(
            ["percent", "seed"], ["score", "teacher", "confidence"], "of", "value").dropna(subset="value")
        long["of"] = long["of"].replace({"score": "student", "confidence": "teacher's confidence"})
        figures.curve(right, long, "percent", "value", "of", legend=i == 0)
        metric, n = tasks.readable(tasks.get(name).verdict_metric), known[known["sparsity"] > 0]["seed"].nunique()
        title = tasks.title(name)
        left.set(title=f"{title}: student (n = {n})", ylabel=f"{metric}, points", xlabel="")
        right.set(title=f"{title}: with its teacher", ylabel=f"{metric}, points", xlabel="")
    for ax in axes[-2:]:
        ax.set_xlabel("heads and neurons removed, %")
    for ax in axes[:2]:
        ax.legend(fontsize=8)
    return fig


def curves_in_words(data: pd.DataFrame, student: str = "dropped") -> str:
    """What the sparsity curves say to those who do not see them."""
    parts = []
    for name in task_names(data):
        found, chance = whole(grid(data, name, student)), whole(grid(data, name, student, "random"))
        means = found.groupby("sparsity")["score"].mean() * 100
        if len(means):
            parts.append(f"{tasks.title(name)}: {means.iloc[0]:.1f} with the dense teacher, at best {means.max():.1f} "
                         f"at {percent(means.idxmax())} and {means.iloc[-1]:.1f} at {percent(means.index[-1])} removed"
                         + "".join(f", {who} {_ends(found, column)}" for who, column in
                                   (("the teacher", "teacher"), ("its confidence", "confidence"))
                                   if found[column].notna().any())  # a regression has no confidence
                         + (f", with random scores {_ends(chance, 'score')}" if len(chance) else ""))
    return tables.listed(f"Score of the {student} student over the teacher's sparsity.", parts)


def _ends(runs: pd.DataFrame, column: str) -> str:
    """A column's mean at the lowest and at the highest sparsity, in points."""
    means = runs.groupby("sparsity")[column].mean() * 100
    return f"from {means.iloc[0]:.1f} to {means.iloc[-1]:.1f}"


def gains_in_words(data: pd.DataFrame) -> str:
    """For each task where the student's curve is highest above 0, how far above KD, and its teacher's score there."""
    parts = []
    for name in task_names(data):
        found = whole(grid(data, name))
        above, dense = found[found["sparsity"] > 0], found[found["sparsity"] == 0]
        if len(above):
            share = above.groupby("sparsity")["score"].mean().idxmax()
            top = above[above["sparsity"] == share]
            parts.append(f"on {tasks.title(name)} the curve is highest at {percent(share)}, "
                         f"{tables.said(tables.versus(top, dense))} points from KD, with a teacher at "
                         f"{top['teacher'].mean() * 100:.1f} instead of {dense['teacher'].mean() * 100:.1f}")
    return tables.listed("Here:", parts, "no runs yet") + "."


def _halved(data: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By task the runs of layer-dropped students at half the teacher removed."""
    there = {name: at_half(grid(data, name).query("sparsity > 0")) for name in task_names(data)}
    return {name: runs for name, runs in there.items() if len(runs)}


def map_of_heads(data: pd.DataFrame):
    """For each task the share of seeds in which a head stays (layers from the bottom up) beside the mean share of
    neurons that stay in each layer, at half the teacher removed."""
    there = _halved(data)
    if not there:
        return figures.placeholder()
    fig, axes = figures.panels(len(there), 2, height=2.2, sharey="row")
    for i, (name, runs) in enumerate(there.items()):
        stay = _stay(runs)
        layers = np.arange(1, len(stay) + 1)
        map_ = axes[i].imshow(100 * stay, origin="lower", aspect="auto", vmin=0, vmax=100, cmap="cividis",
                              extent=(0.5, stay.shape[1] + 0.5, 0.5, len(stay) + 0.5))
        heads = [1, *range(4, stay.shape[1] + 1, 4)]
        axes[i].set(title=f"{tasks.title(name)} (n = {len(runs)})", xlabel="head", xticks=heads, yticks=layers)
        axes[i].grid(False)
        lower = axes[len(there) + i]
        lower.barh(layers, _neurons(runs), color=figures.COLOURS[0])
        lower.set(xlabel="neurons that stay, %", xlim=(0, 100), yticks=layers)
    for ax in (axes[0], axes[len(there)]):
        ax.set_ylabel("layer")
    fig.colorbar(map_, ax=axes[: len(there)], label="seeds that keep it, %")
    return fig


def _stay(runs: pd.DataFrame) -> np.ndarray:
    """Share of the seeds in which each head stays [layers, heads], from the bottom layer up."""
    return np.mean([[[int(c) for c in row] for row in rows] for rows in runs["extra_kept_heads"]], axis=0)


def map_in_words(data: pd.DataFrame) -> str:
    """What the map of heads says to those who do not see it."""
    parts = []
    for name, runs in _halved(data).items():
        heads, neurons = _stay(runs).sum(1), _neurons(runs)
        parts.append(f"{tasks.title(name)}, {share_of(runs)} removed: heads " + ", ".join(f"{k:.1f}" for k in heads)
                     + "; neurons, %, " + ", ".join(f"{share:.0f}" for share in neurons))
    return tables.listed("What stays in each layer, from the bottom, on average.", parts)


def _neurons(runs: pd.DataFrame) -> np.ndarray:
    """Mean share of its neurons that stays in each layer, in percent, from the bottom."""
    kept = np.mean(runs["extra_kept_neurons"].tolist(), axis=0)
    before = kept.sum() / ((1 - runs["sparsity"].iloc[0]) * len(kept))  # of a layer
    return kept / before * 100


def layers_in_words(data: pd.DataFrame) -> str:
    """For each task the layers that keep most and fewest of their heads, and how many heads every seed treats alike."""
    parts = []
    for name, runs in _halved(data).items():
        stay = _stay(runs)
        most, least = stay.sum(1).argmax(), stay.sum(1).argmin()
        alike = np.isin(stay, (0, 1)).mean()
        parts.append(f"on {tasks.title(name)} layer {most + 1} keeps most of its {stay.shape[1]} heads "
                     f"({stay[most].sum():.1f}) and layer {least + 1} fewest ({stay[least].sum():.1f}), and "
                     f"{percent(alike)} of all heads have the same fate in every seed (n = {len(runs)})")
    return tables.listed("Here:", parts, "no runs yet") + "."


def differences(by_task: dict[str, dict[str, dict]], label: str = "minus KD, points"):
    """A forest plot of estimates by name for each task, one below the other: tasks may not have the same rows, which
    are equally far apart in all."""
    if not by_task:
        return figures.placeholder()
    sizes = [len(estimates) for estimates in by_task.values()]
    height = 0.27 * np.mean(sizes) + 0.65
    fig, axes = figures.panels(1, len(sizes), height=height, gridspec_kw={"height_ratios": sizes})
    for ax, (name, estimates) in zip(axes, by_task.items(), strict=True):
        figures.forest(ax, estimates)
        ax.set_title(tasks.title(name), loc="left")
    axes[-1].set_xlabel(label)  # one unit for all
    return fig


def differences_in_words(by_task: dict[str, dict[str, dict]], what: str) -> str:
    """What a figure of differences by task says to those who do not see it."""
    parts = [f"{tasks.title(task)}: " + ", ".join(f"{name} {tables.said(e)}" for name, e in estimates.items())
             for task, estimates in by_task.items()]
    return tables.listed(f"{what}, in points.", parts)


def lines(runs: pd.DataFrame, x: str, xlabel: str):
    """Score over `x`, a panel a task."""
    names = task_names(runs)
    if not names:
        return figures.placeholder()
    fig, axes = figures.panels(len(names), height=2.4)
    for ax, name in zip(axes, names, strict=True):
        part = whole(runs[runs["task"] == name], x)
        figures.curve(ax, part, x, "score")
        title = f"{tasks.title(name)} (n = {part['seed'].nunique()})\n{share_of(part)} removed"
        ax.set(title=title, xlabel="", ylabel=tasks.readable(f"{tasks.get(name).verdict_metric}, points"))
    fig.supxlabel(xlabel, fontsize="medium")
    return fig


def lines_in_words(runs: pd.DataFrame, x: str) -> str:
    """What a figure of mean scores over `x` says to those who do not see it."""
    kept = [whole(part, x) for _, part in runs.groupby("task", sort=False)]
    means = (pd.concat(kept).groupby(["task", x])["score"].mean() * 100).round(1) if kept else {}
    return tables.listed(f"Mean score by task and {x}.",
                         [f"{tasks.title(task)} at {value:g}: {mean}" for (task, value), mean in means.items()])
