"""What chapter 03 shows of its runs: densities, peaks, automatic against chosen sparsity. Reads records only."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from kdutils import claims, experiments, figures, intervals, records, tables, tasks
from kdutils.figures import PERCENT, percent
from kdutils.pages import stark
from kdutils.tables import text

STUDENTS = ("dropped", "pruned")
WITHIN = "seeds within a task and student"
READINGS = {"A": "A", "B": "B", "C-neurons": "C, neurons", "D": "D"}  # C takes of the heads what A does


def auto(data: pd.DataFrame, task: str, student: str = "dropped", scores: str | None = None) -> pd.DataFrame:
    """The automatic runs of a task and student; `scores` None: the knowledgeable ones."""
    return stark.of(data, "STARK-Auto", task, student, scores=scores, reading=None, bandwidth=None)


def with_the_grid(frame: pd.DataFrame, profile: str, task: str = "all") -> pd.DataFrame:
    """The chapter's runs and those of chapter 02's plan that are there, measured."""
    found, _ = records.look_up(experiments.plan("02_stark", profile, None if task == "all" else task))
    return stark.measured(pd.concat([frame, records.frame(found)], ignore_index=True))


def pairs(data: pd.DataFrame) -> list[tuple[str, str]]:
    """Tasks and students that have automatic runs."""
    return [(task, student) for student in STUDENTS for task in tables.task_names(data)
            if len(auto(data, task, student))]


def _tasks(data: pd.DataFrame, student: str = "dropped") -> list[str]:
    return [task for task, kind in pairs(data) if kind == student]


def printed(data: pd.DataFrame) -> pd.DataFrame:
    """The poster's two rows and their sparsities, on the tasks that have runs here and on average."""
    book = claims.load()["tables"]
    rows = []
    for table, what, digits in (("stark-auto", "", 1), ("stark-auto-sparsity", ", sparsity", 0)):
        for row in ("STARK4", "STARK-AUTO4"):
            cells = [f"{value:.{digits}f}" for value in book[table]["rows"][row]]
            rows.append({"method": row + what} | dict(zip(book[table]["columns"], cells, strict=True)))
    table, there = pd.DataFrame(rows), tables.task_names(data)
    kept = [column for name in (*there, "all") for column in table if column.split()[0] == name]
    return table[["method", *kept]].rename(columns={"all average": "all eight"})


def counts(frame: pd.DataFrame) -> pd.DataFrame:
    """How many runs of the chapter each task has, by student and by what ranked the teacher's units."""
    ranked = frame["scores"].fillna("by score") if "scores" in frame else "by score"
    shown = frame.assign(student=[stark.STUDENTS.get(name, name) for name in frame["student"]], teacher=ranked)
    runs = shown.groupby(["student", "teacher", "task"], sort=False).size()
    return runs.unstack("task", fill_value=0)[list(dict.fromkeys(frame["task"]))].reset_index()


# ---------------------------------------------------------------------------------------------------------- densities


def densities(data: pd.DataFrame, kinds: dict[str, str], peaks: bool = False):
    """For each task the densities of the layer-dropped students' heads' scores, a faint line a seed; with `peaks` the
    first peak of each. No score is negative: what the kernels put below zero is not drawn."""
    names = _tasks(data)
    if not names:
        return figures.placeholder()
    fig, axes = figures.panels(len(names), height=2.4)
    looks = dict(zip(kinds, zip(figures.COLOURS, ("-", "--"), strict=False), strict=False))
    for ax, name in zip(axes, names, strict=True):
        runs = auto(data, name)
        for kind, (colour, dashes) in looks.items():
            for row in runs.to_dict("records"):
                x, y = row[f"extra_densities_{kind}_x"], row[f"extra_densities_{kind}_density"]
                ax.plot(x, y, dashes, color=colour, alpha=0.5, linewidth=1)
                if peaks:
                    ax.plot(row["extra_peak"], np.interp(row["extra_peak"], x, y), "o", color=figures.INK, markersize=4)
        ax.set(title=f"{tasks.title(name)} (n = {len(runs)})", xlabel="score", yticks=[])
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
    axes[0].set_ylabel("density")
    if len(kinds) > 1:
        lines = [Line2D([], [], color=colour, linestyle=dashes) for colour, dashes in looks.values()]
        fig.legend(lines, list(kinds.values()), loc="outside upper center", ncols=len(lines))
    return fig


def centres(data: pd.DataFrame) -> pd.DataFrame:
    """Where heads' expressiveness and friendliness are densest, and the difference by seed."""
    rows = []
    for task, student in pairs(data):
        runs = auto(data, task, student)
        p, q = runs["extra_densities_P_centre"], runs["extra_densities_Q_centre"]
        rows.append({"student": stark.STUDENTS[student], "task": task, "expressiveness": f"{p.mean():.3f}",
                     "friendliness": f"{q.mean():.3f}", "difference": tables.said(intervals.paired(q - p), 3)})
    return pd.DataFrame(rows)


def densities_in_words(data: pd.DataFrame) -> str:
    rows = centres(data).to_dict("records") if pairs(data) else []
    return tables.listed("Densest score of the heads, expressiveness and friendliness.",
                         [f"{r['student']} {r['task']}: {r['expressiveness']} and {r['friendliness']}" for r in rows])


def peaks_in_words(data: pd.DataFrame) -> str:
    said = [f"{student} {task}: {auto(data, task, student)['extra_peak'].mean():.2f}" for task, student in pairs(data)]
    return tables.listed("First density peak of the interpolated scores, mean over seeds.", said)


# ---------------------------------------------------------------------------------------- automatic and chosen sparsity


def points(data: pd.DataFrame) -> pd.DataFrame:
    """One row a task, student and seed: the automatic sparsity, and the one that is best for this seed on held-out rows
    both in percent; `chosen` is the grid's choice over all seeds. Half a grid has no best."""
    rows = []
    for task, student in pairs(data):
        grid, held = stark.grid(data, task, student), f"held_{tasks.get(task).verdict_metric}"
        above = grid[grid["sparsity"] > 0]
        whole = above.pivot_table(index="seed", columns="sparsity", values=held).dropna() if len(above) else above
        picked = stark.best(data, task, student)
        for seed, share in auto(data, task, student).set_index("seed")["extra_sparsity"].items():
            own = whole.loc[seed].idxmax() * 100 if len(picked) and seed in whole.index else math.nan
            rows.append({"task": task, "student": student, "seed": seed, "automatic": share * 100, "own": own,
                         "chosen": picked["sparsity"].iloc[0] * 100 if len(picked) else math.nan})
    return pd.DataFrame(rows, columns=["task", "student", "seed", "automatic", "own", "chosen"])


def correlations(data: pd.DataFrame) -> pd.DataFrame:
    """Pearson's r between automatic and best sparsity: the paper's table; one point a task and student, on the tasks of
    the claim; one a seed; and one a seed after the means of its task and student are taken away."""
    claim = claims.one("auto-correlation")
    claim = claims.at(claim, data["profile"].iloc[0]) if len(data) else claim
    found = points(data)
    found = found[found["task"].isin(claim["tasks"])] if found["task"].isin(claim["tasks"]).any() else found
    groups = found.groupby(["task", "student"], sort=False)
    means = groups[["automatic", "chosen"]].mean().dropna()
    seeds = found.dropna(subset=["own"])
    within = seeds[["automatic", "own"]] - seeds.groupby(["task", "student"])[["automatic", "own"]].transform("mean")
    paper = [claims.task_cells(f"stark-auto-sparsity/{row}") for row in ("STARK-AUTO4", "STARK4")]
    sides = {"the paper's eight tasks": paper, "tasks and students": (means["automatic"], means["chosen"]),
             "every seed": (seeds["automatic"], seeds["own"]),
             WITHIN: (within["automatic"], within["own"])}
    rows = []
    for label, (a, b) in sides.items():
        a, b, centred = np.asarray(a, float), np.asarray(b, float), label == WITHIN
        r = intervals.correlation(a.round(9), b.round(9), seeds.groupby(["task", "student"]).ngroups if centred else 1)
        far = np.abs(a - b).mean() if len(a) and not centred else math.nan
        rows.append({"points": label, "r": r["effect"], "95 % from": r["low"], "to": r["high"],
                     "mean distance, points of sparsity": far, "n": len(a)})
    return pd.DataFrame(rows)


def r_text(found: pd.DataFrame, row: int) -> str:
    """A row of `correlations` as what its correlation is."""
    r, low, high, n = (found.iloc[row][name] for name in ("r", "95 % from", "to", "n"))
    count = f"{n} point{'s' if n != 1 else ''}"
    if math.isnan(r):
        return f"not computable ({count})"
    return f"{r:.2f} [{low:.2f}, {high:.2f}] ({count})".replace("-", "−")


def distance_in_words(data: pd.DataFrame) -> str:
    """Where the automatic and the chosen sparsities of tasks and students lie, and what the correlation is."""
    found = correlations(data)
    means = points(data).groupby(["task", "student"], sort=False)[["automatic", "chosen"]].mean().dropna()
    if means.empty:
        return "Here: no runs yet."
    spans = {name: " to ".join(dict.fromkeys(f"{end:.0f}" for end in (values.min(), values.max())))
             for name, values in means.items()}
    away = (means["automatic"] - means["chosen"]).abs().mean()
    return (f"Here: automatic sparsities of tasks and students are {spans['automatic']}{PERCENT}, those that the "
            f"grid chose {spans['chosen']}{PERCENT}, {away:.0f} points away on average; the correlation is "
            f"{r_text(found, 1)}. {_margins(data)}")


def _margins(data: pd.DataFrame) -> str:
    """By how much the grid's choice is ahead of the next best on held-out rows, and what single seeds would choose."""
    told = []
    for task, student in pairs(data):
        grid = stark.whole(stark.grid(data, task, student))
        means = grid[grid["sparsity"] > 0].groupby("sparsity")["held"].mean().nlargest(2) * 100 if len(grid) else []
        own = points(data).query("task == @task and student == @student")["own"].dropna()
        if len(means) == 2 and len(own):
            ahead = figures.number(means.iloc[0] - means.iloc[1])
            told.append(f"for {tasks.title(task)}, {student}, {percent(means.index[0])} is {ahead} points ahead "
                        f"of {percent(means.index[1])} on held-out rows, and single seeds choose "
                        f"{' to '.join(dict.fromkeys(f'{end:.0f}' for end in (own.min(), own.max())))}{PERCENT}")
    return tables.listed("How sure the grid's choice is:", told, "not known") + "."


def scatter(data: pd.DataFrame):
    """The best sparsity over the automatic one: each seed faint, each task and student as a large marker; tasks differ
    in colour and shape, and pruned students are filled."""
    found = points(data)
    if not found["chosen"].notna().any():
        return figures.placeholder()
    fig, (ax,) = figures.panels(1, width=4.8, height=3.6)
    jitter = np.random.default_rng(0).uniform(-1, 1, len(found))
    found = found.assign(own=found["own"] + jitter)
    looks = zip(figures.COLOURS, "os^Dv<>", strict=False)
    for (task, part), (colour, marker) in zip(found.groupby("task", sort=False), looks, strict=False):
        for student, fill in zip(STUDENTS, ("none", colour), strict=True):
            some = part[part["student"] == student]
            look = {"color": colour, "markerfacecolor": fill}
            ax.plot(some["automatic"], some["own"], marker, alpha=0.5, markersize=4, **look)
            if some["chosen"].notna().any():
                large = {"markersize": 11, "markeredgewidth": 2, "label": f"{tasks.title(task)}, {student}"}
                ax.plot(some["automatic"].mean(), some["chosen"].iloc[0], marker, **look, **large)
    ax.axline((0, 0), slope=1, color="#888888", linewidth=1)
    ax.set(xlabel="automatic sparsity, %", ylabel="best sparsity on held-out rows, %", xlim=(-3, 100), ylim=(-3, 100))
    ax.legend(fontsize=8, labelspacing=1)
    return fig


def scatter_in_words(data: pd.DataFrame) -> str:
    means = points(data).groupby(["task", "student"], sort=False)[["automatic", "chosen"]].mean().dropna()
    return tables.listed("Automatic and chosen sparsity in percent.",
                         [f"{task} {student}: {a:.0f} and {c:.0f}" for (task, student), (a, c) in means.iterrows()])


def students(data: pd.DataFrame) -> pd.DataFrame:
    """KD, STARK with its grid, the automatic sparsity and the random control: the verdict's metric by task. What has no
    run at all has no column."""
    rows = []
    for task, student in pairs(data):
        found = {"KD": stark.of(data, "KD", task, student), "STARK": stark.best(data, task, student),
                 "STARK-Auto": auto(data, task, student), "random, as many": auto(data, task, student, "random")}
        row = {"student": stark.STUDENTS[student], "task": f"{task} {tasks.get(task).verdict_metric}"}
        row |= {name: text(runs["score"]) for name, runs in found.items()}
        row["sparsity, grid"] = stark.share_of(found["STARK"])
        rows.append(row | {"automatic": percent(found["STARK-Auto"]["extra_sparsity"].mean())})
    table = pd.DataFrame(rows)
    return table.loc[:, (table != figures.DASH).any()]


def differences(data: pd.DataFrame) -> dict[str, dict[str, dict]]:
    """The automatic students minus the others, paired by seed: by task, then by student and rival."""
    rivals = {"KD": lambda *at: stark.of(data, "KD", *at), "STARK": lambda *at: stark.best(data, *at),
              "random": lambda *at: auto(data, *at, "random")}
    found: dict[str, dict[str, dict]] = {}
    for task, student in pairs(data):
        for rival, runs in rivals.items():
            estimate = tables.versus(auto(data, task, student), runs(task, student))
            if estimate["n"]:
                found.setdefault(task, {})[f"{student}: minus {rival}"] = estimate
    return found


def sensitivity(data: pd.DataFrame, student: str = "dropped") -> pd.DataFrame:
    """The automatic sparsity in percent, a mean over seeds, by reading and factor on the bandwidth; and the grid's.
    Empty where no task has automatic runs of these students."""
    rows = []
    names = _tasks(data, student)
    if not names:
        return pd.DataFrame()
    for reading, label in READINGS.items():
        for factor in ("0.5", "1", "2"):
            column = f"extra_sensitivity_{reading}_{factor}"
            rows.append({"reading": label, "bandwidth": f"× {factor}"}
                        | {name: auto(data, name, student)[column].mean() * 100 for name in names})
    uniform = {name: auto(data, name, student)["extra_random_sparsity"].mean() * 100 for name in names}
    rows.append({"reading": "A of random scores", "bandwidth": "× 1"} | uniform)
    best = {name: stark.best(data, name, student)["sparsity"].mean() * 100 for name in names}
    return pd.DataFrame([*rows, {"reading": "grid", "bandwidth": figures.DASH} | best])


def readings_in_words(data: pd.DataFrame) -> str:
    """For each task how far the automatic sparsity moves with the bandwidth (reading A) and with the reading."""
    table, parts = sensitivity(data), []
    for name in _tasks(data):
        half, one, two = (table[(table["reading"] == "A") & (table["bandwidth"] == f"× {b}")][name].iloc[0]
                          for b in ("0.5", "1", "2"))
        usual = table[table["reading"].isin(READINGS.values()) & (table["bandwidth"] == "× 1")][name]
        parts.append(f"on {tasks.title(name)} reading A says {half:.0f}, {one:.0f} and {two:.0f}{PERCENT} at "
                     "half, once and twice the bandwidth, and all readings "
                     f"{usual.min():.0f} to {usual.max():.0f}{PERCENT} at Scott's")
    return tables.listed("Here:", parts, "no runs yet") + "."
