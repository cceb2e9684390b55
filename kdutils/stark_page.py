"""What chapter 02 shows of its runs: the sparsity grid, comparisons, protocols, costs. Reads records only."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from kdutils import claims, figures, peakd_page, profiles, tasks, verdicts
from kdutils.experiments.stark import BASELINES, plan
from kdutils.intervals import paired

ARGUMENTS = ("student", "base", "sparsity", "scores", "protocol", "lam")
SUFFIX = {"dropped": "4", "pruned": "30"}  # of the paper's names of rows
METHODS = ("FT", "KD", *BASELINES[1:], "STARK, random", "STARK")
LAMBDAS = {"friendliness": 0.0, "expressiveness": 1.0}
TRAIN_ROWS = {"mrpc": 3668, "rte": 2490, "stsb": 5749, "sst2": 67349, "qnli": 104743, "qqp": 363846, "mnli": 392702,
              "mnli-mm": 392702}


def measured(frame: pd.DataFrame) -> pd.DataFrame:
    """`records.frame` with a column for each measure, as fractions. `score` is the verdict's metric on test, or else on
    dev; `on_dev` the same on dev, `best_dev` on dev at the best epoch; `paper` the paper's metric on dev; `teacher`,
    `confidence` and `majority` what the run's teacher and a constant answer score where `score` is read."""
    added = pd.DataFrame([_measures(row) for row in frame.to_dict("records")], index=frame.index)
    return frame.reindex(columns=list(dict.fromkeys([*frame.columns, *ARGUMENTS]))).join(added)


def _measures(row: dict) -> dict[str, float]:
    score, paper = tasks.get(row["task"]).verdict_metric, tasks.get(row["task"]).metrics[0]
    split = "test" if pd.notna(row.get(f"test_{score}")) else "dev"
    names = {"score": f"{split}_{score}", "on_dev": f"dev_{score}", "best_dev": f"best_dev_{score}",
             "paper": f"dev_{paper}", "teacher": f"extra_teacher_{split}_{score}",
             "confidence": f"extra_teacher_{split}_confidence", "majority": f"extra_majority_{split}_{score}"}
    return {name: row.get(column, math.nan) for name, column in names.items()}


# ---------------------------------------------------------------------------------------------------------- selection


def of(data: pd.DataFrame, method: str, task: str, student: str = "dropped", **args) -> pd.DataFrame:
    """The runs of a method on a task with these arguments (a list: any of them; None: absent)."""
    return verdicts.select(data[data["task"] == task], {"method": method, "args": {"student": student} | args})


def grid(data: pd.DataFrame, task: str, student: str = "dropped", scores: str = "knowledgeable", base: str = "KD",
         protocol: str = "clean") -> pd.DataFrame:
    """STARK's runs over sparsities, with the base method's as sparsity 0; empty where STARK has none."""
    found = of(data, "STARK", task, student, scores=scores, base=base, protocol=protocol, lam=[None, 0.5])
    zero = of(data, base, task, student).assign(sparsity=0.0)
    return pd.concat([zero, found]) if len(found) else found


def best(data: pd.DataFrame, task: str, student: str = "dropped", scores: str = "knowledgeable", base: str = "KD",
         protocol: str = "clean") -> pd.DataFrame:
    """The runs of the grid, above 0, that a protocol reports (see `verdicts.chosen`)."""
    return _chosen(grid(data, task, student, scores, base, protocol), task, protocol)


def _chosen(runs: pd.DataFrame, task: str, protocol: str) -> pd.DataFrame:
    return verdicts.chosen(runs[runs["sparsity"] > 0], tasks.get(task).verdict_metric, protocol)


def runs_of(data: pd.DataFrame, method: str, task: str, student: str = "dropped") -> pd.DataFrame:
    """The runs that stand for a method of `METHODS`: of the two STARKs, those at the chosen sparsity."""
    kinds = {"STARK": "knowledgeable", "STARK, random": "random"}
    return best(data, task, student, kinds[method]) if method in kinds else of(data, method, task, student)


def judged(data: pd.DataFrame, chapter: str, profile: str) -> pd.DataFrame:
    """The claims of a chapter by id, with a dash where what there is gives no number yet."""
    table = peakd_page.judged(data, chapter, profile)
    return table.assign(ours=table["ours"].str.replace(r"^[+−-]?nan( ± nan)?", figures.DASH, regex=True))


def task_names(data: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(data["task"]))


# ----------------------------------------------------------------------------------------------------------- tables


def printed(data: pd.DataFrame, student: str = "dropped") -> pd.DataFrame:
    """The paper's main table, on the tasks that have runs here (all of them where none is the paper's)."""
    whole = claims.published()
    whole = whole[whole["table"] == f"stark-main-{student}"]
    some = whole[whole["task"].isin([*task_names(data), "all"])]
    found = (some if some["task"].nunique() > 1 else whole).assign(column=lambda t: t["task"] + " " + t["metric"])
    wide = found.pivot_table(index="row", columns="column", values="value", sort=False)
    return wide.reset_index().rename_axis(columns=None).rename(columns={"row": "method", "all average": "all eight"})


def beside_the_paper(data: pd.DataFrame, student: str = "dropped") -> pd.DataFrame:
    """One row a method: the paper's number and ours, in the paper's metric on dev, for each task of both."""
    columns = {name: f"{name} {tasks.get(name).metrics[0]}" for name in task_names(data)}
    table = claims.load()["tables"][f"stark-main-{student}"]
    rows = []
    for method in METHODS:
        row, paper_row = {"method": method}, method.split(",")[0] + SUFFIX[student]
        for name, column in columns.items():
            there = column in table["columns"] and paper_row in table["rows"] and "," not in method
            row[f"{column}, paper"] = (table["rows"][paper_row][table["columns"].index(column)] if there else None)
            row[f"{column}, ours"] = _text(runs_of(data, method, name, student)["paper"])
        rows.append(row)
    return _known(pd.DataFrame(rows))


def in_scores(data: pd.DataFrame, student: str = "dropped") -> pd.DataFrame:
    """One row a method: the verdict's metric on test (dev where there is none) and the chosen sparsity in percent, for
    each task; then the dense teacher and a constant answer."""
    names = {name: f"{name} {tasks.get(name).verdict_metric}" for name in task_names(data)}
    rows = []
    for method in METHODS:
        found = {name: runs_of(data, method, name, student) for name in names}
        text = {names[name]: _text(runs["score"]) for name, runs in found.items()}
        shares = " / ".join(share_of(runs) for runs in found.values())
        rows.append({"method": method} | text | {"§": shares if method.startswith("STARK") else figures.DASH})
    for who in ("teacher", "majority"):
        values = {names[name]: of(data, "KD", name, student)[who].mean() * 100 for name in names}
        rows.append({"method": who} | {k: figures.DASH if math.isnan(v) else f"{v:.1f}" for k, v in values.items()})
    return _known(pd.DataFrame(rows)).fillna(figures.DASH)


def share_of(runs: pd.DataFrame) -> str:
    return f"{runs['sparsity'].iloc[0]:.0%}" if len(runs) else figures.DASH


def _text(values: pd.Series, sign: bool = False) -> str:
    return figures.plus_minus(*figures.interval(values * 100), sign=sign)


def _known(table: pd.DataFrame) -> pd.DataFrame:
    """Without the rows of methods, and the columns, that have no run."""
    ours = [c for c in table if c != "method" and not c.endswith("paper")]
    kept = table[(table[ours].fillna(figures.DASH) != figures.DASH).any(axis=1)]
    return or_none(kept.reset_index(drop=True))


def or_none(table: pd.DataFrame) -> pd.DataFrame:
    """The table; where it has no row, one that says so."""
    return table if len(table) else pd.DataFrame({"runs": ["none yet"]})


# ------------------------------------------------------------------------------------------------------- differences


def by_seed(a: pd.DataFrame, b: pd.DataFrame, measure: str) -> pd.Series:
    """A minus B in points, by seed."""
    if not (len(a) and len(b)):
        return pd.Series(dtype=float)
    return ((a.set_index("seed")[measure] - b.set_index("seed")[measure]) * 100).dropna()


def pooled(differences: dict[str, pd.Series]) -> dict[str, dict]:
    """The estimate of each task and, of two tasks or more, of each seed's mean over them."""
    there = {name: values for name, values in differences.items() if len(values)}
    made = {name: paired(values) for name, values in there.items()}
    together = pd.concat(there.values(), axis=1).dropna().mean(axis=1) if len(there) > 1 else []
    return made | ({"all": paired(together)} if len(together) else {})


def against_kd(data: pd.DataFrame, student: str = "dropped") -> dict[str, dict]:
    """Each method minus KD, pooled over the tasks that have it: estimates by method."""
    made = {}
    for method in METHODS:
        found = pooled({name: by_seed(runs_of(data, method, name, student), of(data, "KD", name, student), "score")
                        for name in task_names(data)})
        if method != "KD" and found:
            made[method] = found.get("all") or next(iter(found.values()))
    return made


def protocols(data: pd.DataFrame, student: str = "dropped") -> pd.DataFrame:
    """STARK minus KD, in points of the verdict's metric, under both protocols, and what the rest of it is."""
    rules = (
        ("clean: scored and chosen on held-out rows, on test", "knowledgeable", "clean", "score", "clean"),
        ("the same runs on dev", "knowledgeable", "clean", "on_dev", "clean"),
        ("paper: scored, chosen, best epoch and reported on dev", "knowledgeable", "paper", "best_dev", "paper"),
        ("those runs on test", "knowledgeable", "paper", "score", "paper"),
        ("random scores, chosen, best epoch and reported on dev", "random", "clean", "best_dev", "paper"),
    )
    rows = []
    for label, scores, scored, measure, rule in rules:
        differences = {}
        for name in task_names(data):
            found = grid(data, name, student, scores, protocol=scored)
            picked = _chosen(found, name, rule)
            differences[name] = by_seed(picked, of(data, "KD", name, student), measure)
        estimates = pooled(differences)
        rows.append({"rule": label} | {name: said(e) for name, e in estimates.items()})
    return pd.DataFrame(rows).fillna(figures.DASH)


def seen(data: pd.DataFrame, claim: str, profile: str) -> str:
    """The smallest effect on a claim, in points, that its runs would have found in four cases of five."""
    (about,) = (c for c in claims.load()["claims"] if c["id"] == claim)
    smallest = verdicts.judge(data, about, profile)[-1]["smallest"]
    return figures.DASH if math.isnan(smallest) else f"{smallest:.1f}"


def said(estimate: dict) -> str:
    return figures.plus_minus(estimate["effect"], estimate["high"] - estimate["effect"], estimate["n"], sign=True)


def plugged(data: pd.DataFrame) -> pd.DataFrame:
    """What STARK adds to KD, PKD and CKD at the sparsity where they were run with it, and what the paper's adds."""
    rows = []
    for base in ("KD", "PKD", "CKD"):
        cells = [claims.cell(f"stark-plug/{base}4{end}/all average") for end in (" w/ STARK", "")]
        row = {"method": base, "the paper, eight tasks": f"{cells[0] - cells[1]:+.1f}"}
        found = {}
        for name in task_names(data):
            at = of(data, "STARK", name, base=["PKD", "CKD"])["sparsity"].unique()
            runs = of(data, "STARK", name, base=base, scores="knowledgeable", protocol="clean", lam=None)
            found[name] = by_seed(runs[runs["sparsity"].isin(at)], of(data, base, name), "score")
        rows.append(row | {name: said(e) for name, e in pooled(found).items()})
    return pd.DataFrame(rows).fillna(figures.DASH)


def unstructured(data: pd.DataFrame) -> pd.DataFrame:
    """Single weights against heads and neurons at the same sparsity: score by task."""
    rows = []
    for name in task_names(data):
        single = of(data, "STARK-unstructured", name)
        whole = of(data, "STARK", name, base="KD", scores="knowledgeable", protocol="clean", lam=None)
        for share in single["sparsity"].unique():
            a, b = (runs[runs["sparsity"] == share] for runs in (single, whole))
            difference = said(paired(by_seed(a, b, "score"))) if len(by_seed(a, b, "score")) else figures.DASH
            rows.append({"task": name, "sparsity": f"{share:.0%}", "single weights": _text(a["score"]),
                         "heads and neurons": _text(b["score"]), "difference": difference,
                         "teacher, single": _text(a["teacher"]), "teacher, whole": _text(b["teacher"])})
    return or_none(pd.DataFrame(rows))


def scales(data: pd.DataFrame) -> pd.DataFrame:
    """KD and STARK for students and teachers of other sizes; encoder parameters in millions."""
    rows = []
    for name in task_names(data):
        for student in ("dropped", "smaller", "small-teacher", "large-teacher"):
            kd, stark = of(data, "KD", name, student), best(data, name, student)
            if not (len(kd) and len(stark)):
                continue
            sizes = [f"{kd[f'extra_{who}_parameters'].mean() / 1e6:.1f}" for who in ("teacher", "student")]
            rows.append({"task": name, "students": student, "teacher, M": sizes[0], "student, M": sizes[1],
                         "teacher": f"{kd['teacher'].mean() * 100:.1f}", "KD": _text(kd["score"]),
                         "STARK": _text(stark["score"]), "§": share_of(stark),
                         "difference": said(paired(by_seed(stark, kd, "score")))})
    return or_none(pd.DataFrame(rows))


def tradeoff(data: pd.DataFrame) -> pd.DataFrame:
    """The runs of every lambda at the sparsity where they were all run, with `lambda`."""
    runs = data[(data["method"] == "STARK") & (data["base"] == "KD") & (data["protocol"] == "clean")
                & (data["student"] == "dropped") & data["scores"].isin(["knowledgeable", *LAMBDAS])]
    lam = runs["scores"].map(LAMBDAS).fillna(runs["lam"]).astype(float).fillna(0.5)
    runs = runs.assign(**{"lambda": lam})
    varied = runs[runs["lambda"] != 0.5][["task", "sparsity", "seed"]].drop_duplicates()
    return runs.merge(varied, on=["task", "sparsity", "seed"])


def costs(data: pd.DataFrame, student: str = "dropped") -> pd.DataFrame:
    """Median seconds of each stage, and megabytes of a training step in float32, by task at half the teacher removed
    (or the nearest sparsity that was run)."""
    rows = []
    for name in task_names(data):
        kd, sparse = of(data, "KD", name, student), grid(data, name, student)
        sparse = at_half(sparse[sparse["sparsity"] > 0])
        if not (len(kd) and len(sparse)):
            continue
        seconds = {"trial, s": kd["extra_train_seconds"], "scoring, s": sparse["extra_score_seconds"],
                   "asking the sparse teacher, s": sparse["extra_teacher_seconds"],
                   "actual, s": sparse["extra_train_seconds"]}
        memory = {"student's step, MB": kd["extra_memory_weights"] + kd["extra_memory_activations"],
                  "dense teacher, MB": kd["extra_memory_teacher"], "sparse teacher, MB": sparse["extra_memory_teacher"]}
        rows.append({"task": name, "§": share_of(sparse)}
                    | {k: float(v.median()) for k, v in (seconds | memory).items()} | {"n": len(sparse)})
    return or_none(pd.DataFrame(rows))


def at_half(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs at 50 %, or at the nearest sparsity that was run."""
    if runs.empty:
        return runs
    shares = runs["sparsity"].unique()
    return runs[runs["sparsity"] == shares[np.abs(shares - 0.5).argmin()]]


def paper_cost(step_seconds: float = 0.02) -> pd.DataFrame:
    """The paper profile's plan before the grid has chosen: runs, steps of their trainings, and hours on a GPU that
    takes `step_seconds` a step (every run counted as a single training of a layer-dropped student)."""
    rows = []
    for name in profiles.task_names("paper"):
        settings, runs = profiles.settings("paper", name), len(plan("paper", name))
        steps = runs * settings.epochs * math.ceil((1 - settings.held) * TRAIN_ROWS[name] / settings.batch_size)
        rows.append({"task": name, "runs": runs, "steps, millions": steps / 1e6, "hours": steps * step_seconds / 3600})
    total = pd.DataFrame(rows)
    return pd.concat([total, pd.DataFrame([{"task": "all"} | total.drop(columns="task").sum().to_dict()])]).astype(
        {"runs": int})
