"""What chapter 06 shows of its runs: tables, differences, episodes, actions, transfers, costs. Reads records only."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from kdutils import figures, tables, tasks, verdicts
from kdutils.experiments import ksm
from kdutils.intervals import Estimate
from kdutils.pages import probes
from kdutils.pages.probes import TYPES, papers_accuracy
from kdutils.tables import by_seed, clear, compared, pooled, readable, said, task_names, text, versus

VARIED = ("layers", "multi_phase", "exploration", "proportion", "reward", "phase", "threshold", "source", "copies",
          "draw", "largest", "clip")
METHODS = ("finetune", "vanilla-KD", "PKD", "Dynamic-KD", "Random-Hard", "Random-Soft", "constant", "tuned-constant",
           "KSM-hard", "KSM-soft")
# As readers know them, beside `probes.NAMES`; where there is nothing here, by their own name.
NAMES = {"finetune": "fine-tuning", "vanilla-KD": "vanilla KD", "Dynamic-KD": "Dynamic KD", "KSM-hard": "hard KSM",
         "KSM-soft": "soft KSM", "tuned-constant": "tuned constant", "tune-constant": "trials of constants",
         "KSM-threshold": "hard KSM, other thresholds", "KSM-literal": "soft KSM, the paper's own updates",
         "KSM-unpenalised": "soft KSM, no penalty on logits"}
PLACES = 5  # at which a line's intervals are drawn
OTHER_LOSSES = ("vanilla-KD", "PKD", "Dynamic-KD")  # rivals whose losses and weights are not those of the selections
UNSELECTIVE = ("constant", "Random-Soft")  # weightings that select nothing
ABLATIONS = {"without the exploration reward": {"exploration": False},
             "exploration as large as in the paper": {"proportion": True}, "without phases": {"multi_phase": False},
             "rewarded by accuracy": {"reward": "accuracy"}, "rewarded by F1": {"reward": "f1"},
             "phases of 64 steps": {"phase": 64}, "phases of 128 steps": {"phase": 128}}
SHRUNK = {"soft KSM, exploration as large as in the paper": ("KSM-soft", {"proportion": True}),
          "constant, its mean action": ("shrunk", {}),
          "constant, the same with a largest weight of 1": ("shrunk", {"largest": 1.0}),
          "constant, the same, gradients never clipped": ("shrunk", {"largest": 1.0, "clip": False})}


def measured(frame: pd.DataFrame) -> pd.DataFrame:
    """`tables.measured`, with the arguments that only some runs have. `papers_f1` and `papers_accuracy` are those that
    the paper prints for a task, on dev at the best epoch (MRPC's best is by F1, and its accuracy that of the last)."""
    made = tables.measured(frame, VARIED, last="dev_accuracy", best="best_dev_accuracy", f1="best_dev_f1")
    printed = ["f1" in tasks.get(name).metrics for name in made["task"]]
    return made.assign(papers_f1=made["f1"].where(printed), papers_accuracy=papers_accuracy(made))


def of(data: pd.DataFrame, method: str, task: str, **change) -> pd.DataFrame:
    """The runs of a method on a task, as in the main comparison unless `change` says otherwise."""
    args = dict.fromkeys(VARIED) | change
    return verdicts.select(data[data["task"] == task], {"method": method, "args": args})


def called(method: str) -> str:
    """A method as readers know it: KSM-soft-2L is "soft KSM, 2 layers", vanilla-KD-augmented "vanilla KD, changed
    copies"."""
    for ending, words in (("-augmented", "changed copies"), ("-repeated", "unchanged copies")):
        if method.endswith(ending):
            return f"{called(method.removesuffix(ending))}, {words}"
    return probes.called(method, NAMES)


def counts(data: pd.DataFrame) -> pd.DataFrame:
    """How many runs of each method there are on each task, ablations and variants with their method."""
    return probes.counts(data, called)


def other(data: pd.DataFrame, task: str) -> int | None:
    """The second student depth of a task, where it has runs."""
    known = data.loc[(data["task"] == task) & data["layers"].notna(), "layers"]
    return int(known.iloc[0]) if len(known) else None


# --------------------------------------------------------------------------------------------------------------- tables


def rebuilt(data: pd.DataFrame, columns: Iterable[str] = ("score",), deeper: bool = False) -> pd.DataFrame:
    """One row a method, `columns` of each task as mean ± half width (n), under their metric (see `compared`); last the
    teacher and a constant answer. With `deeper`, students of the second depth, which is in the tasks' names."""
    there = {name: other(data, name) if deeper else None for name in task_names(data, mismatched=True)}
    there = {name: layers for name, layers in there.items() if layers or not deeper}
    rows = []
    for method in METHODS:
        row = {"method": called(method)}
        for name, layers in there.items():
            found = of(data, f"{method}-{layers}L", name, layers=layers) if layers else of(data, method, name)
            row |= {f"{name}, {layers} layers" if layers else headed(name, c): text(found[c]) for c in columns}
        rows.append(row)
    made = compared(pd.DataFrame(rows), "method")
    made = made[(made.drop(columns="method") != figures.DASH).any(axis=1)]
    return made if "score" not in columns or deeper else pd.concat([made, _marks(data)[list(made)]])


def at_another_depth(data: pd.DataFrame) -> str:
    """What soft KSM gains over three rivals where students have the second depth, paired by seed."""
    told = []
    for name in task_names(data):
        if layers := other(data, name):
            soft, *rivals = (of(data, f"{method}-{layers}L", name, layers=layers)
                             for method in ("KSM-soft", "vanilla-KD", "Random-Soft", "KSM-hard"))
            gains = {who: versus(soft, runs) for who, runs in zip(
                ("vanilla KD", "random soft actions", "hard KSM"), rivals, strict=True)}
            parts = ", ".join(f"{said(e)} over {who}" for who, e in gains.items() if e["n"])
            told += [f"on {name} with {layers} layers soft KSM gains, in points, {parts}"] if parts else []
    return "; ".join(told)


def headed(task: str, column: str) -> str:
    """A task and the metric of `column`, of which `score` is the verdicts'."""
    return f"{task} {tasks.get(task).verdict_metric if column == 'score' else column.rpartition('_')[2]}"


def _marks(data: pd.DataFrame) -> pd.DataFrame:
    found = {headed(name, "score"): tables.marks(runs) for name, runs in data.groupby("task")}
    return pd.DataFrame(found).rename_axis("method").reset_index()


def against(data: pd.DataFrame) -> dict[str, dict[str, Estimate]]:
    """Soft KSM minus each rival, paired by seed, by task and rival."""
    rivals = [method for method in METHODS if method != "KSM-soft"]
    found = {name: {called(rival): versus(of(data, "KSM-soft", name), of(data, rival, name)) for rival in rivals}
             for name in task_names(data)}
    kept = {name: {rival: e for rival, e in by_rival.items() if e["n"]} for name, by_rival in found.items()}
    return {name: some for name, some in kept.items() if some}


def unselective(data: pd.DataFrame) -> pd.DataFrame:
    """What soft KSM, and weightings that select nothing, gain over the rivals that have losses and weights of their
    own: points, paired by seed."""
    rows = []
    for name in task_names(data):
        for rival in OTHER_LOSSES:
            gains = {called(m): versus(of(data, m, name), of(data, rival, name)) for m in ("KSM-soft", *UNSELECTIVE)}
            if all(e["n"] for e in gains.values()):
                rows.append({"task": name, "points over": called(rival)} | {who: said(e) for who, e in gains.items()})
    return pd.DataFrame(rows)


def without_an_actor(data: pd.DataFrame) -> str:
    """Which of those rivals weightings that select nothing beat, with five seeds and an interval above zero."""
    told = []
    for name in task_names(data):
        beaten = {}
        for m in UNSELECTIVE:
            gains = {called(rival): versus(of(data, m, name), of(data, rival, name)) for rival in OTHER_LOSSES}
            beaten.setdefault(_and(rival for rival, e in gains.items() if clear(e) and e["effect"] > 0), []).append(m)
        told += [f"on {name} {_and(map(called, some))} {'beat' if len(some) > 1 else 'beats'} {rivals}, clear of zero"
                 for rivals, some in beaten.items() if rivals]
    return "; ".join(told)


def _and(names: Iterable[str]) -> str:
    *some, last = [*names] or [""]
    return f"{', '.join(some)} and {last}" if some else last


def where(found: dict[str, str]) -> str:
    """On which tasks soft KSM is held against what, from the tasks by rival: the tasks alone where all have the same.
    """
    by_tasks = {}
    for rival, names in found.items():
        by_tasks.setdefault(names, []).append(rival)
    told = by_tasks if len(by_tasks) < 2 else [f"{names} (from {', '.join(some)})" for names, some in by_tasks.items()]
    return readable("; ".join(told)) or figures.DASH


def ablations(data: pd.DataFrame) -> pd.DataFrame:
    """Soft KSM minus itself with one thing changed, paired by seed, by task."""
    variants = {label: ("KSM-soft", change) for label, change in ABLATIONS.items()}
    variants |= {"the paper's own updates": ("KSM-literal", {}), "no penalty on logits": ("KSM-unpenalised", {})}
    rows = []
    for label, (method, change) in variants.items():
        estimates = pooled({name: by_seed(of(data, "KSM-soft", name), of(data, method, name, **change))
                            for name in task_names(data)})
        if estimates:
            rows.append({"soft KSM minus the same": label} | {name: said(e) for name, e in estimates.items()})
    return pd.DataFrame(rows).fillna(figures.DASH)


def deviation(data: pd.DataFrame, phase: int) -> dict[str, float]:
    """By task the standard deviation of soft KSM's rewards of a step, r^p / k with k = `phase`, over all phases of
    stage one, mean over runs: what r^p / k is divided by, and r^e is not."""
    def within(episodes):
        return np.std([reward for one in episodes for reward in one["rewards"]]) / phase

    found = {name: of(data, "KSM-soft", name) for name in task_names(data)}
    return {name: float(runs["extra_episodes"].map(within).mean()) for name, runs in found.items() if len(runs)}


def proportion(data: pd.DataFrame, phase: int) -> str:
    """`deviation` in words: how much less r^e weighs than where both rewards are raw."""
    return "; ".join(f"on {name} the deviation is {size:.4f} on average, so that exploration weighs about "
                     f"{round(1 / size, -1):.0f} times less beside the phase reward than where both are left alone"
                     for name, size in deviation(data, phase).items() if size)


def thresholds(data: pd.DataFrame) -> pd.DataFrame:
    """Hard KSM at each threshold: types chosen at a step, steps that chose none, score."""
    rows = []
    for name in task_names(data):
        for value in sorted((*ksm.THRESHOLDS, ksm.THRESHOLD)):
            runs = (of(data, "KSM-hard", name) if value == ksm.THRESHOLD
                    else of(data, "KSM-threshold", name, threshold=value))
            if len(runs):
                chosen = np.mean([sum(action) for action in runs["extra_mean_action"]])
                rows.append({"task": name, "threshold": f"{value:g}", "types a step": chosen,
                             "empty steps, %": (runs["extra_skipped"] / runs["extra_steps"]).mean() * 100,
                             "score": text(runs["score"])})
    return pd.DataFrame(rows)


def transfers(data: pd.DataFrame) -> pd.DataFrame:
    """Soft KSM's student under its own selector and under foreign ones. Where the selector was trained with students of
    the usual depth, the student under it has another, and stands beside one of that depth under its own."""
    rows = []
    for name in task_names(data):
        layers = other(data, name)
        kinds = {"its own": of(data, "KSM-soft", name),
                 "the next seed's": of(data, "transfer", name, source="seed"),
                 f"{ksm.SOURCES.get(name)}'s": of(data, "transfer", name, source="task")}
        kinds = {label: runs for label, runs in kinds.items() if len(runs)}
        deeper = of(data, f"transfer-{layers}L", name, layers=layers, source="depth") if layers else ()
        if len(deeper):
            kinds |= {f"its own, {layers} layers": of(data, f"KSM-soft-{layers}L", name, layers=layers),
                      f"the usual depth's, {layers} layers": deeper}
        rows += [{"task": name, "selector": label, "score": text(runs["score"])} for label, runs in kinds.items()]
    return pd.DataFrame(rows)


def trials(data: pd.DataFrame) -> pd.DataFrame:
    """The constant weightings that were tried: weights, score on held-out rows, and which one was taken."""
    rows = []
    for name in task_names(data):
        found = data[(data["task"] == name) & (data["method"] == "tune-constant")].sort_values("draw")
        for i, row in found.iterrows():
            rows.append({"task": name} | dict(zip(TYPES, ksm.weighting(int(row["draw"])), strict=True))
                        | {"held-out score": 100 * row["held"], "taken": "yes" if i == found["held"].idxmax() else ""})
    return pd.DataFrame(rows)


def augmented(data: pd.DataFrame) -> pd.DataFrame:
    """Students of the task's rows, of augmented rows and, for the same number of steps, of the task's rows repeated,
    with the steps that each took, and the gain over those of the task's rows, paired by seed."""
    rows = []
    for name in task_names(data):
        for method in ("finetune", "vanilla-KD", "KSM-soft"):
            kinds = {"the task's": of(data, method, name)}
            kinds |= {label: data[(data["task"] == name) & (data["method"] == f"{method}-{kind}")] for label, kind in
                      (("with copies, unchanged", "repeated"), ("with copies, changed", "augmented"))}
            if all(kinds[label].empty for label in list(kinds)[1:]):
                continue
            rows += [{"task": name, "method": called(method), "rows": label,
                      "steps": f"{runs['extra_steps'].mean():,.0f}", "score": text(runs["score"]),
                      "minus the task's, same seed": said(versus(runs, kinds["the task's"])) if kind else figures.DASH}
                     for kind, (label, runs) in enumerate(kinds.items()) if len(runs)]
    return pd.DataFrame(rows)


def costs(data: pd.DataFrame) -> pd.DataFrame:
    """Median seconds of one distillation and of KSM's two stages (`n` runs), and their ratio. Vanilla KD's and stage
    two's have the evaluation after each epoch in them, stage one's has the rewards' held-out passes and no other."""
    rows = []
    for name in task_names(data):
        plain = of(data, "vanilla-KD", name)["extra_train_seconds"].median()
        for method in ("KSM-soft", "KSM-hard"):
            runs = of(data, method, name)
            if len(runs):
                first, second = runs["extra_ksm_seconds"].median(), runs["extra_distil_seconds"].median()
                rows.append({"task": name, "method": called(method), "vanilla KD, s": plain,
                             "episodes": f"{runs['extra_episodes_run'].mean():.1f}".removesuffix(".0"),
                             "stage one, s": first,
                             "stage two, s": second, "times vanilla KD": (first + second) / plain,
                             "n": runs["extra_ksm_seconds"].notna().sum()})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------- the two stages


def episodes(data: pd.DataFrame) -> pd.DataFrame:
    """One row an episode of stage one of soft and hard KSM: the student's end (minus its cross-entropy)."""
    rows = []
    for name in task_names(data):
        for method in ("KSM-soft", "KSM-hard"):
            runs = of(data, method, name)
            rows += [{"task": name, "method": called(method), "seed": row["seed"], "episode": i + 1,
                      "nll": -one["quality"]}
                     for row in runs.to_dict("records") for i, one in enumerate(row["extra_episodes"])]
    return pd.DataFrame(rows, columns=["task", "method", "seed", "episode", "nll"])


def rewards(data: pd.DataFrame) -> pd.DataFrame:
    """How steady the phase rewards of a kind are: over all phases of all episodes, their mean over their standard
    deviation, and the share that is above zero."""
    rows = []
    for name in task_names(data):
        for kind in ("loss", "f1", "accuracy"):
            runs = of(data, "KSM-soft", name, reward=None if kind == "loss" else kind)
            values = [r for some in runs.get("extra_episodes", []) for one in some for r in one["rewards"]]
            if values:
                values = np.array(values)
                rows.append({"task": name, "reward": kind, "mean / deviation": values.mean() / max(values.std(), 1e-12),
                             "above zero, %": f"{100 * np.mean(values > 0):.0f}",
                             "exactly zero, %": f"{100 * np.mean(values == 0):.0f}", "phases": len(values)})
    return pd.DataFrame(rows)


def actions(data: pd.DataFrame) -> pd.DataFrame:
    """Soft KSM's action over stage two, one row a type, part of training (in percent) and run."""
    rows = []
    for name in task_names(data):
        for row in of(data, "KSM-soft", name).to_dict("records"):
            parts = len(row["extra_actions"])
            rows += [{"task": name, "seed": row["seed"], "share": 100 * (i + 0.5) / parts, "type": kind, "action": a}
                     for i, action in enumerate(row["extra_actions"]) for kind, a in zip(TYPES, action, strict=True)]
    return pd.DataFrame(rows, columns=["task", "seed", "share", "type", "action"])


def movement(data: pd.DataFrame) -> pd.DataFrame:
    """Each type's mean action, how far it moves within a run (standard deviation over all steps, mean over runs) and
    how far runs lie apart (standard deviation of their means), for the runs that recorded the first. Means over parts
    of training would hide a policy that answers to every batch."""
    rows = []
    for name in task_names(data):
        runs = of(data, "KSM-soft", name)
        runs = runs[runs["extra_action_sd"].notna()] if "extra_action_sd" in runs else runs[:0]
        for i, kind in enumerate(TYPES if len(runs) else ()):
            mean, within = (runs[column].str[i] for column in ("extra_mean_action", "extra_action_sd"))
            rows.append({"task": name, "type": kind, "mean action": mean.mean(), "within a run": within.mean(),
                         "between runs": mean.std(), "n": len(runs)})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------------------- conclusions


def untrained(data: pd.DataFrame) -> str:
    """What random soft actions score above vanilla KD, paired by seed, on the tasks where that is clear of zero: in the
    verdicts' metric and in the paper's."""
    told = []
    for name in task_names(data):
        sides = of(data, "Random-Soft", name), of(data, "vanilla-KD", name)
        gain, metric = versus(*sides), tasks.get(name).metrics[0]
        if clear(gain):
            papers = versus(*sides, f"papers_{metric}") if f"papers_{metric}" in data else {"n": 0}
            told.append(f"on {name} Random-Soft less vanilla KD is {said(gain)} points of "
                        f"{tasks.get(name).verdict_metric}"
                        + (f" and, by the paper's measure, {said(papers)} of {metric}" if papers["n"] else ""))
    end = ("; it has no actor, and other losses and weights than vanilla KD, so that what KSM gains there is to be "
           "read against Random-Soft")
    return "; ".join(told) + end if told else ""


def mostly_within(table: pd.DataFrame) -> str:
    """What `movement` says of how far actions move within a run and lie apart between runs."""
    told = []
    several = table.dropna(subset="between runs") if len(table) else table
    for name, some in several.groupby("task", sort=False) if len(several) else ():
        within, between = some["within a run"], some["between runs"]
        told.append(f"on {name} actions deviate by {within.min():.2f} to {within.max():.2f} within a run and by "
                    f"{between.min():.2f} to {between.max():.2f} between runs; the deviation between runs is "
                    f"the larger one for {(between > within).sum()} of the {len(some)} types")
    return "; ".join(told)


def foreign(data: pd.DataFrame) -> str:
    """What a selector trained under another seed costs soft KSM's student, paired by seed."""
    found = {name: versus(of(data, "transfer", name, source="seed"), of(data, "KSM-soft", name))
             for name in task_names(data)}
    return "; ".join(f"on {name} the next seed's selector instead of its own changes a student's score by {said(e)} "
                     f"points, which is {'clear' if clear(e) else 'not clear'} of zero"
                     for name, e in found.items() if e["n"])


def explored(data: pd.DataFrame) -> str:
    """What exploration in the paper's proportion makes of soft KSM's actions, and what its students gain over those of
    the default and of no exploration reward, paired by seed."""
    told = []
    for name in task_names(data):
        runs, usual = of(data, "KSM-soft", name, proportion=True), of(data, "KSM-soft", name)
        gains = {what: versus(runs, others) for what, others in
                 (("the default", usual), ("no exploration reward", of(data, "KSM-soft", name, exploration=False)))}
        if all(e["n"] for e in gains.values()):
            mean, before = (np.mean(some["extra_mean_action"].tolist()) for some in (runs, usual))
            told.append(f"on {name} the mean action is {mean:.3f} with the large exploration reward and {before:.2f} "
                        "with the default's, and its students gain "
                        + " and ".join(f"{said(e)} points over {what}" for what, e in gains.items()))
    return "; ".join(told)


def shrunk(data: pd.DataFrame) -> pd.DataFrame:
    """The scores of soft KSM with the large exploration reward and of its constant controls; none without controls."""
    rows = [{"trained with": label} | {headed(name, "score"): text(of(data, method, name, **change)["score"])
                                       for name in task_names(data) if len(of(data, "shrunk", name))}
            for label, (method, change) in SHRUNK.items()]
    return compared(pd.DataFrame(rows), "trained with") if len(rows[0]) > 1 else pd.DataFrame()


def clipping(data: pd.DataFrame) -> str:
    """What of the large reward's gain is its small weights', and what of that is that gradients are not clipped, paired
    by seed."""
    told = []
    for name in task_names(data):
        soft, small, largest, free = (of(data, method, name, **change) for method, change in SHRUNK.values())
        gains = {what: versus(*sides) for what, sides in (
            ("for choosing at each step instead of always taking the mean action", (soft, small)),
            ("for the small constant over the same proportions at full size", (small, largest)),
            ("for never clipping the full size", (free, largest)))}
        if all(e["n"] for e in gains.values()):
            told.append(f"on {name} the gains are " + ", ".join(
                f"{said(e)} points{'' if clear(e) else ' (unclear)'} {what}" for what, e in gains.items()))
    return "; ".join(told)


def steadiness(data: pd.DataFrame) -> str:
    """Which kind of reward is steadiest, and what the loss reward gains over the others, paired by seed."""
    table, told = rewards(data), []
    for name, some in table.groupby("task", sort=False) if len(table) else ():
        gains = {kind: versus(of(data, "KSM-soft", name), of(data, "KSM-soft", name, reward=kind))
                 for kind in some["reward"] if kind != "loss"}
        if any(e["n"] for e in gains.values()):
            first = some.loc[some["mean / deviation"].idxmax(), "reward"]
            told.append(f"on {name} the reward from {first} is the steadiest, and students of the loss reward gain "
                        + " and ".join(f"{said(e)} points{'' if clear(e) else ' (unclear)'} over those of {kind}"
                                       for kind, e in gains.items() if e["n"]))
    return "; ".join(told)


def selective(table: pd.DataFrame) -> str:
    """What `thresholds` says of whether hard KSM selects at all."""
    told = [f"on {row['task']} hard KSM at threshold {row['threshold']} takes {row['types a step']:.1f} of the "
            f"{len(TYPES)} types a step" for row in table.to_dict("records")]
    most = len(table) and (table["types a step"] > len(TYPES) - 0.5).all()
    end = ", so that it nearly always learns everything, and a claim about it is one about a constant" if most else ""
    return "; ".join(told) + end


# -------------------------------------------------------------------------------------------------------------- figures


def lines(data: pd.DataFrame, x: str, y: str, hue: str, xlabel: str, ylabel: str):
    """A panel a task: mean of `y` over `x`, a line for each `hue`, and 95 % intervals over seeds at `PLACES` values of
    `x`, as bars side by side: bands of lines so close would lie on one another."""
    names = task_names(data)
    fig, axes = figures.panels(max(len(names), 1), sharey=figures.scale(y) == 100)  # nats differ too much by task
    values, groups = np.sort(data[x].unique()), list(dict.fromkeys(data[hue]))
    step = -(-len(values) // PLACES)
    aside = dict(zip(groups, np.arange(len(groups)) - (len(groups) - 1) / 2, strict=True))
    for ax, name in zip(axes, names, strict=False):
        some = data[data["task"] == name]
        some = some.assign(**{x: some[x] + 0.015 * np.ptp(values) * some[hue].map(aside)})
        figures.curve(ax, some, x, y, hue, hue_order=groups, legend=name == names[0], err_kws={"alpha": 0})
        for colour, group in zip(figures.COLOURS, groups, strict=False):
            for at, part in list(some[some[hue] == group].groupby(x))[(step - 1) // 2 :: step]:
                mean, half, _ = figures.interval(part[y] * figures.scale(y))
                ax.errorbar([at], [mean], yerr=[half], color=colour, capsize=2, linewidth=1.2)
        if step == 1:
            ax.set_xticks(values)
        seeds = some.groupby(hue)["seed"].nunique()  # each line has its own
        said_n = " to ".join(str(n) for n in dict.fromkeys((seeds.min(), seeds.max())))
        ax.set(title=readable(f"{name} (n = {said_n})"), xlabel=xlabel, ylabel=ylabel)
    if names:
        handles, labels = axes[0].get_legend_handles_labels()
        axes[0].get_legend().remove()
        fig.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    else:
        figures.nothing(axes)
    return fig


def lines_in_words(data: pd.DataFrame, x: str, y: str, hue: str, what: str) -> str:
    """The ends of every line of `lines`, which shows `what`."""
    ends = []
    for (name, group), some in data.groupby(["task", hue], sort=False):
        means = some.groupby(x)[y].mean() * figures.scale(y)
        digits = 1 if figures.scale(y) == 100 else 3
        ends.append(f"{name}, {group}: {means.iloc[0]:.{digits}f} to {means.iloc[-1]:.{digits}f}")
    return tables.listed(f"{what}, from first to last.", ends)
