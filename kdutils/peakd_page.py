"""What chapter 04 shows of its runs: measures, tables beside the paper's, differences, costs. Reads records only."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from kdutils import figures, tables, tasks, verdicts
from kdutils.experiments.peakd import THRESHOLD
from kdutils.records import Record

USUAL = {"layers": None, "init": None}  # arguments of the chapter's main comparison
TRIED = ("batch_size", "lr", "epochs", "tau", "alpha", "beta")
OPTIONAL = (*USUAL, *TRIED, "threshold", "extra_label_counts", "extra_ptp_seconds")
DEPTH = ("PatientKD", "SPS-2", "Pea-KD")  # methods compared at several depths and starts
MARKED = {"score": "", "paper": "paper_"}  # measures that the teacher and a constant answer have too, by prefix
LABELS = ("sure, right", "unsure, right", "sure, wrong", "unsure, wrong")


def measured(frame: pd.DataFrame) -> pd.DataFrame:
    """`tables.measured`; `paper` is the paper's metric at the best dev epoch, `paper_teacher` and `paper_majority` what
    the teacher and a constant answer score by it."""
    return tables.measured(frame, OPTIONAL, paper="best_dev_{paper}", paper_teacher="extra_teacher_dev_{paper}",
                           paper_majority="extra_majority_dev_{paper}")


def of(data: pd.DataFrame, method: str, task: str, **args) -> pd.DataFrame:
    """The runs of a method on a task, at the chapter's usual depth and start unless `args` say otherwise."""
    return verdicts.select(data[data["task"] == task], {"method": method, "args": USUAL | args})


def mark_empty(axes) -> None:
    """Say so on axes that show nothing."""
    figures.nothing([ax for ax in axes if not ax.collections and not any(len(line.get_xdata()) for line in ax.lines)])


def trials(data: pd.DataFrame, most: int = 6) -> pd.DataFrame:
    """The `most` best trials of a method on a task, the best first: what was varied, and the score on held-out rows."""
    tried = data[data["method"].str.startswith("tune-")]
    rows = []
    for (task, method), some in tried.groupby(["task", "method"], sort=False):
        varied = [name for name in TRIED if some[name].notna().any()]
        rows += [{"task": task, "method": f"{method.removeprefix('tune-')} ({len(some)} tried)"}
                 | {name: f"{row[name]:g}" for name in varied} | {"held-out score": 100 * row["held"]}
                 for _, row in some.nlargest(most, "held").iterrows()]
    return pd.DataFrame(rows)


def rebuilt(data: pd.DataFrame, methods: Iterable[str], measure: str = "score", **args) -> pd.DataFrame:
    """One row a method that has runs: `measure` on each task as `mean ± half width (n)`, in points; for the score and
    the paper's measure also the teacher and a constant answer."""
    rows = []
    for name in tables.task_names(data):
        task = tasks.get(name)
        metric = {"score": task.verdict_metric, "paper": task.metrics[0]}.get(measure, measure)
        cells = {method: tables.text(of(data, method, name, **args)[measure]) for method in methods}
        if measure in MARKED:
            cells |= tables.marks(data[data["task"] == name], MARKED[measure])
        rows.append(pd.Series(cells, name=f"{name} {metric}"))
    made = pd.concat(rows, axis=1)
    has = (made != figures.DASH).loc[list(methods)]
    known = [name for name in made.index if name not in has.index or has.loc[name].any()] if has.any(axis=None) else []
    return made.loc[known, has.columns[has.any()]].rename_axis("method").reset_index()


def differences(data: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> dict[str, dict]:
    """A minus B in score, paired by seed, for each pair on each task that has runs of both; by label."""
    found = {f"{a} − {b}, {name}": tables.versus(of(data, a, name), of(data, b, name))
             for a, b in pairs for name in tables.task_names(data)}
    return {label: estimate for label, estimate in found.items() if estimate["n"]}


def costs(data: pd.DataFrame, methods: Iterable[str], task: str) -> pd.DataFrame:
    """What students of a task cost; times are medians."""
    rows = []
    for method in methods:
        found = of(data, method, task)
        rows.append({
            "task": task, "method": method, "encoder, M": found["extra_encoder"].mean() / 1e6,
            "layers run": found["extra_effective"].max(),
            "activations, MB": found["extra_activation_bytes"].mean() / 1e6,
            "ms a step": found["extra_step_seconds"].median() * 1000,
            "before KD, s": found["extra_ptp_seconds"].median(), "KD, s": found["extra_train_seconds"].median(),
            "n": len(found),
        })  # fmt: skip
    made = pd.DataFrame(rows)
    return made[made["n"] > 0].astype({"layers run": "Int64"})


def shares(data: pd.DataFrame) -> pd.DataFrame:
    """Share of each PTP label on train, in percent, by task, labelling teacher and threshold. Counts do not depend on
    the student's seed."""
    found = data[data["method"].isin(["Pea-KD", "PTP-threshold", "PTP-crossfit"]) & data["layers"].isna()]
    found = found.assign(threshold=found["threshold"].fillna(THRESHOLD))
    rows = []
    for row in found.drop_duplicates(["task", "method", "threshold"]).to_dict("records"):
        counts = pd.Series(row["extra_label_counts"], index=LABELS)
        by = "two half-teachers" if row["method"] == "PTP-crossfit" else "the teacher"
        start = {"task": row["task"], "labels by": by, "t": f"{row['threshold']:g}"}
        rows.append(start | (100 * counts / counts.sum()).to_dict())
    made = pd.DataFrame(rows, columns=["task", "labels by", "t", *LABELS])
    return made.sort_values(["task", "labels by", "t"], ignore_index=True)


def thresholds(data: pd.DataFrame) -> pd.DataFrame:
    """The runs of the threshold sweep, and Pea-KD's of the same seeds, which are its point at the usual threshold."""
    usual = data[data["layers"].isna() & data["init"].isna()]
    swept, main = usual[usual["method"] == "PTP-threshold"], usual[usual["method"] == "Pea-KD"]
    main = main.merge(swept[["task", "seed"]].drop_duplicates()).assign(threshold=THRESHOLD)
    return pd.concat([swept, main]) if len(main) else swept


def depths(data: pd.DataFrame) -> pd.DataFrame:
    """The runs of tasks that have students of more than one depth."""
    found = data[data["method"].isin(DEPTH) & data["init"].isna()]
    return found[found.groupby("task")["extra_layers"].transform("nunique") > 1]


def by_depth(data: pd.DataFrame) -> pd.DataFrame:
    """Score by task and number of independent layers, one column a method; then the teacher's and a constant answer's.
    """
    found = data[data["method"].isin(DEPTH) & data["init"].isna()].sort_values(["task", "extra_layers"])
    wide = found.pivot_table(index=["task", "extra_layers"], columns="method", values="score", aggfunc=tables.text)
    wide = wide.reindex(columns=[name for name in DEPTH if name in wide]).fillna(figures.DASH)
    marks = {name: tables.marks(part) for name, part in found.groupby("task")}
    wide = wide.reset_index().rename_axis(columns=None)
    for who in ("teacher", "constant answer"):
        wide[who] = wide["task"].map({name: told[who] for name, told in marks.items()})
    return wide.rename(columns={"extra_layers": "independent layers"})


def curves(records: Iterable[Record], methods: Iterable[str]) -> pd.DataFrame:
    """Training loss of KD by task, method, seed and step, at the chapter's usual depth and start; on each task of the
    methods that have runs there, the seeds that all of them have."""
    rows = [{name: r["spec"][name] for name in ("task", "method", "seed")} | {"step": step, "loss": loss}
            for r in records if r["spec"]["method"] in set(methods) and not set(USUAL) & set(r["spec"]["args"])
            for step, loss in r["curve"]]  # fmt: skip
    found = pd.DataFrame(rows, columns=["task", "method", "seed", "step", "loss"])
    ran = found.groupby(["task", "seed"])["method"].transform("nunique")
    return found[ran == found.groupby("task")["method"].transform("nunique")].reset_index(drop=True)
