"""What chapter 02 shows of its runs: the sparsity grid, comparisons, protocols, costs. Reads records only."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from kdutils import claims, figures, profiles, tables, tasks, verdicts
from kdutils.experiments.stark import BASELINES, plan
from kdutils.experiments.stark_baselines import DEFAULT, STUDENT_OF_TRIALS, TRIED
from kdutils.experiments.stark_teachers import LAMBDAS
from kdutils.figures import percent
from kdutils.intervals import Estimate
from kdutils.pages.paper_plan import TRAIN_ROWS
from kdutils.tables import by_seed, pooled, said, task_names, text, versus

ARGUMENTS = ("student", "base", "sparsity", "scores", "protocol", "lam", "heat", "weight")
SUFFIX = {"dropped": "4", "pruned": "30"}  # of the paper's names of rows
METHODS = ("FT", "KD", "KD, tuned", *BASELINES[1:], "STARK, random", "STARK")
STUDENTS = {"dropped": "layer-dropped", "pruned": "parameter-pruned", "smaller": "smaller student",
            "small-teacher": "smaller teacher", "large-teacher": "larger teacher"}  # as people read them
PAPERS_RULE, SELECTION = "paper: scored, chosen, best epoch and reported on dev", "selection: dev less held-out rows"
AGAIN = "the same weights on held-out rows"


def measured(frame: pd.DataFrame) -> pd.DataFrame:
    """`tables.measured`; `on_dev` is the verdict's metric on dev, `best_dev` and `best_held` at the epoch that is best
    on dev, `paper` the paper's metric on dev, `confidence` the teacher's where `score` is read."""
    found = tables.measured(frame, ARGUMENTS, on_dev="dev_{score}", best_dev="best_dev_{score}", paper="dev_{paper}",
                            best_held="best_held_{score}", confidence="extra_teacher_{split}_confidence")
    return found.assign(selection=found["best_dev"] - found["best_held"])


# ---------------------------------------------------------------------------------------------------------- selection


def of(data: pd.DataFrame, method: str, task: str, student: str = "dropped", **args) -> pd.DataFrame:
    """The runs of a method on a task with these arguments (a list: any of them; None: absent)."""
    return verdicts.select(data[data["task"] == task], {"method": method, "args": {"student": student} | args})


def grid(data: pd.DataFrame, task: str, student: str = "dropped", scores: str = "knowledgeable",
         protocol: str = "clean") -> pd.DataFrame:
    """STARK's runs on KD over sparsities, with KD's own as sparsity 0; empty where STARK has none."""
    found = of(data, "STARK", task, student, scores=scores, base="KD", protocol=protocol, lam=[None, 0.5])
    zero = of(data, "KD", task, student).assign(sparsity=0.0)
    return pd.concat([zero, found]) if len(found) else found


def best(data: pd.DataFrame, task: str, student: str = "dropped", scores: str = "knowledgeable",
         protocol: str = "clean") -> pd.DataFrame:
    """The runs of the grid, above 0, that a protocol reports (see `verdicts.chosen`)."""
    return _chosen(grid(data, task, student, scores, protocol), task, protocol)


def _chosen(runs: pd.DataFrame, task: str, protocol: str) -> pd.DataFrame:
    runs, metric = runs[runs["sparsity"] > 0], tasks.get(task).verdict_metric
    if protocol == "hindsight":  # by the very score that is reported
        runs, protocol = runs.assign(**{f"held_{metric}": runs["score"]}), "clean"
    return verdicts.chosen(runs, metric, protocol)


def runs_of(data: pd.DataFrame, method: str, task: str, student: str = "dropped") -> pd.DataFrame:
    """The runs that stand for a method of `METHODS`: of the two STARKs, those at the chosen sparsity; of a baseline
    those at what its trials chose. KD is what STARK is built on, so its own trials have a row apart."""
    kinds = {"STARK": "knowledgeable", "STARK, random": "random"}
    if method in kinds:
        return best(data, task, student, kinds[method])
    if method not in TRIED or method == "KD":
        return of(data, method.replace("KD, tuned", "tuned-KD"), task, student)
    where = {"method": method, "args": {"student": student}}
    return verdicts.tuned(data[data["task"] == task], where, tasks.get(task).verdict_metric)


def trials(data: pd.DataFrame) -> pd.DataFrame:
    """One row a task and method whose trials have all run: what they chose, what that gains on the held-out rows that
    chose it, and what the method scores with it and without; then STARK less the method so tuned."""
    rows = []
    for name in task_names(data):
        for method in TRIED:
            student, metric = STUDENT_OF_TRIALS.get(method, "dropped"), tasks.get(name).verdict_metric
            where = {"method": method, "args": {"student": student}}
            chosen, held = verdicts.own(data[data["task"] == name], where, metric)
            if chosen is None:
                continue
            taken = verdicts.tuned(data[data["task"] == name], where, metric)
            rows.append({
                "task": name, "method": method, "τ ×": f"{chosen[0]:g}", "weight ×": f"{chosen[1]:g}",
                "gain, held out": figures.number((held[chosen] - held[DEFAULT]) * 100, sign=True),
                "default": text(of(data, method, name, student)["score"]), "tuned": text(taken["score"]),
                "STARK less tuned": said(versus(best(data, name, student), taken)),
            })
    return pd.DataFrame(rows)


# ----------------------------------------------------------------------------------------------------------- tables


def counts(data: pd.DataFrame) -> pd.DataFrame:
    """How many runs each task has of a student and method, under names that people read."""
    names = {"STARK-unstructured": "STARK, single weights"}
    for method in data["method"].unique():
        stage, _, base = method.partition("-")
        names |= {"tune": {method: f"{base}, trials"}, "tuned": {method: f"{base}, tuned"}}.get(stage, {})
    shown = data.assign(student=[STUDENTS.get(student, student) for student in data["student"]],
                        method=[names.get(method, method) for method in data["method"]])
    runs = shown.groupby(["student", "method", "task"], sort=False).size()
    return runs.unstack("task", fill_value=0)[list(dict.fromkeys(data["task"]))].reset_index()


def printed(data: pd.DataFrame, table: str = "main-dropped") -> pd.DataFrame:
    """A table of the paper, on the tasks that have runs here (all of them where none is the paper's)."""
    found = tables.printed(f"stark-{table}", task_names(data, mismatched=True))
    return found.rename(columns={"row": "method", "average": "all eight"})


def printed_sparsities(data: pd.DataFrame) -> pd.DataFrame:
    """The sparsities in percent that the paper prints as optimal, one row a student."""
    students = {"main-dropped": "layer-dropped", "main-pruned": "parameter-pruned", "scale-large": "larger teacher",
                "scale-small": "smaller student"}
    rows = [printed(data, f"{table}-sparsity").assign(method=name) for table, name in students.items()]
    found = pd.concat(rows, ignore_index=True).rename(columns=lambda name: name.removesuffix(" sparsity"))
    return found.rename(columns={"method": "student"}).convert_dtypes()


def beside_the_paper(data: pd.DataFrame, student: str = "dropped") -> pd.DataFrame:
    """One row a method: the paper's number and ours, in the paper's metric on dev, for each task of both."""
    columns = {name: f"{name} {tasks.get(name).metrics[0]}" for name in _names(data, student)}
    table = claims.load()["tables"][f"stark-main-{student}"]
    rows = []
    for method in METHODS:
        row, paper_row = {"method": method}, method.split(",")[0] + SUFFIX[student]
        for name, column in columns.items():
            there = column in table["columns"] and paper_row in table["rows"] and "," not in method
            row[f"{column}, paper"] = (table["rows"][paper_row][table["columns"].index(column)] if there else None)
            row[f"{column}, ours"] = text(runs_of(data, method, name, student)["paper"])
        rows.append(row)
    return _known(pd.DataFrame(rows))


def _names(data: pd.DataFrame, student: str) -> list[str]:
    """The tasks that have runs of these students."""
    return task_names(data[data["student"] == student], mismatched=True)


def in_scores(data: pd.DataFrame, student: str = "dropped") -> pd.DataFrame:
    """One row a method: the verdict's metric on test (dev where there is none) and the chosen sparsity in percent, for
    each task; then the dense teacher and a constant answer."""
    names = {name: f"{name} {tasks.get(name).verdict_metric}" for name in _names(data, student)}
    rows = []
    for method in METHODS:
        found = {name: runs_of(data, method, name, student) for name in names}
        scores = {names[name]: text(runs["score"]) for name, runs in found.items()}
        chosen = method.startswith("STARK") and any(map(len, found.values()))
        shares = " / ".join(map(share_of, found.values())) if chosen else figures.DASH
        rows.append({"method": method} | scores | {"sparsity": shares})
    marks = {column: tables.marks(of(data, "KD", name, student)) for name, column in names.items()}
    rows += [{"method": who} | {column: found[who] for column, found in marks.items()}
             for who in ("teacher", "constant answer")]
    return _known(pd.DataFrame(rows)).fillna(figures.DASH)


def whole(runs: pd.DataFrame, x: str = "sparsity") -> pd.DataFrame:
    """The runs of the seeds that ran every value of `x`: a curve over `x` compares nothing else."""
    seeds = runs.pivot_table(index="seed", columns=x, values="score").dropna().index if len(runs) else []
    return runs[runs["seed"].isin(seeds)] if len(runs) else runs


def share_of(runs: pd.DataFrame) -> str:
    """The sparsity of some runs, which is one, in percent."""
    return percent(runs["sparsity"].iloc[0]) if len(runs) else figures.DASH


def _known(table: pd.DataFrame) -> pd.DataFrame:
    """Without the rows of methods that have no run."""
    ours = [c for c in table if c != "method" and not c.endswith("paper")]
    kept = table[(table[ours].fillna(figures.DASH) != figures.DASH).any(axis=1)]
    return kept.reset_index(drop=True)


def trials_in_words(data: pd.DataFrame) -> str:
    """For each task what the trials' choice adds to each method whose comparison has run with it, paired by seed."""
    parts = []
    for name in task_names(data):
        gains = {}
        for method in TRIED:
            student = STUDENT_OF_TRIALS.get(method, "dropped")
            gain = versus(of(data, f"tuned-{method}", name, student), of(data, method, name, student))
            gains |= {method: gain} if gain["n"] else {}
        clear = ", ".join(method for method, gain in gains.items() if tables.clear(gain)) or "none"
        listed = ", ".join(f"{method} {said(gain)}" for method, gain in gains.items())
        parts += [f"on {tasks.title(name)} {listed} (clear of zero: {clear})"] if gains else []
    return tables.listed("Here tuned less default comes to, in points:", parts, "no runs yet") + "."


# ------------------------------------------------------------------------------------------------------- differences


def against_kd(data: pd.DataFrame, student: str = "dropped") -> dict[str, dict[str, dict]]:
    """Each method minus KD: estimates by task and method, for the tasks that have any."""
    found = {name: {method: versus(runs_of(data, method, name, student), of(data, "KD", name, student))
                    for method in METHODS if method != "KD"} for name in task_names(data)}
    some = {name: {method: e for method, e in made.items() if e["n"]} for name, made in found.items()}
    return {name: made for name, made in some.items() if made}


def _by_rule(data: pd.DataFrame) -> dict[str, dict[str, Estimate]]:
    """STARK minus KD, in points of the verdict's metric, under both protocols. What was chosen on dev is also read,
    for the very same weights of both, on held-out rows. The clean rows take the seeds that ran the whole grid, whatever
    chose among it, so that they have the same seeds. The paper's grid holds 0 %, which is KD itself: a seed whose best
    sparsity is below KD reports KD, so that its difference is the greater of zero and what the row above has.
    """
    printed = "as in the released code: 0 % allowed, so never below KD"
    rules = (
        ("clean: scored and chosen on held-out rows", "knowledgeable", "clean", "score", "clean"),
        ("the same runs on dev", "knowledgeable", "clean", "on_dev", "clean"),
        ("clean, but chosen where it is reported: none does better", "knowledgeable", "clean", "score", "hindsight"),
        (PAPERS_RULE, "knowledgeable", "paper", "best_dev", "paper"),
        (printed, "knowledgeable", "paper", "best_dev", "paper"),
        (AGAIN, "knowledgeable", "paper", "best_held", "paper"),
        (SELECTION, "knowledgeable", "paper", "selection", "paper"),
        ("random scores, chosen, best epoch and reported on dev", "random", "clean", "best_dev", "paper"),
        (f"{AGAIN}, random scores", "random", "clean", "best_held", "paper"),
        ("selection: dev less held-out rows, random scores", "random", "clean", "selection", "paper"),
    )
    made = {}
    for label, scores, scored, measure, rule in rules:
        found = {}
        for name in task_names(data):
            runs = grid(data, name, scores=scores, protocol=scored)
            picked = _chosen(runs if rule == "paper" else whole(runs), name, rule)  # the paper's rule sees to it itself
            gain = by_seed(picked, of(data, "KD", name), measure)
            found[name] = gain.clip(lower=0) if label == printed else gain
        made[label] = pooled(found)
    return made


def protocols(data: pd.DataFrame) -> pd.DataFrame:
    """`_by_rule` as text, one row a rule."""
    rows = [{"rule": label} | {name: said(e) for name, e in found.items()} for label, found in _by_rule(data).items()]
    return pd.DataFrame(rows).fillna(figures.DASH)


def selection_in_words(data: pd.DataFrame) -> str:
    """What the paper's protocol gives over KD on dev and what the very same weights give on held-out rows, on each task
    that has it."""
    made, parts = _by_rule(data), []
    for name in task_names(data):
        if name in made[PAPERS_RULE]:
            on_dev, again, less = (made[rule][name] for rule in (PAPERS_RULE, AGAIN, SELECTION))
            parts.append(f"on {tasks.title(name)} it gives {said(on_dev)} over KD on dev and, with the same weights, "
                         f"{said(again)} on held-out rows, {said(less).lstrip('+−')} "
                         f"{'more' if less['effect'] < 0 else 'less'}{_unclear(less)}")
    return tables.listed("Under the paper's protocol:", parts, "no runs yet") + "."


def _unclear(estimate: Estimate) -> str:
    """What to add to a difference that could be none."""
    return "" if tables.clear(estimate) else ", which is not clear of zero"


def choices_in_words(data: pd.DataFrame) -> str:
    """For each task the sparsity that held-out rows chose, the teacher's own score there, the difference from KD, and
    the best difference of any sparsity on the reported rows themselves, over the seeds of the whole grid."""
    parts = []
    for name in task_names(data):
        runs, kd = whole(grid(data, name)), of(data, "KD", name)
        clean, hindsight = (_chosen(runs, name, rule) for rule in ("clean", "hindsight"))
        if len(clean) and len(kd):
            dense = kd[kd["seed"].isin(clean["seed"])]
            own, dense = (figures.number(some["teacher"].mean() * 100) for some in (clean, dense))
            metric = tasks.readable(tasks.get(name).verdict_metric)
            parts.append(f"on {tasks.title(name)} held-out rows choose {share_of(clean)}, where the teacher's own "
                         f"{metric} is {own} (dense: {dense}) and its students differ from KD "
                         f"by {said(versus(clean, kd))}, while hindsight would choose {share_of(hindsight)}, with "
                         f"{said(versus(hindsight, kd))}")
    return tables.listed("Here:", parts, "no runs yet") + "."


def equal_sparsities(data: pd.DataFrame) -> dict[float, dict[str, Estimate]]:
    """STARK with scores minus STARK at random where both remove as much, in points, paired by seed: by sparsity, then
    by task and, under "all", of the tasks that have enough seeds."""
    found: dict[float, dict[str, pd.Series]] = {}
    for name in task_names(data):
        scored, chance = (grid(data, name, scores=kind).query("sparsity > 0") for kind in ("knowledgeable", "random"))
        for share in sorted(set(scored["sparsity"]) & set(chance["sparsity"])):
            both = (runs[runs["sparsity"] == share] for runs in (scored, chance))
            found.setdefault(share, {})[name] = by_seed(*both)
    return {share: pooled(found[share]) for share in sorted(found)}


def scored_less_random(data: pd.DataFrame) -> pd.DataFrame:
    """`equal_sparsities` as text, one row a sparsity."""
    rows = [{"sparsity": percent(share)} | {name: said(e) for name, e in made.items()}
            for share, made in equal_sparsities(data).items()]
    table = pd.DataFrame(rows)
    return table[[name for name in ("sparsity", *task_names(data), "all") if name in table]].fillna(figures.DASH)


def equal_in_words(data: pd.DataFrame) -> str:
    """In how many cases (a task and a sparsity) random teachers teach worse than scored ones of the same size, and in
    how many better, with intervals that exclude zero; empty where there is no case."""
    cells = {(name, share): e for share, made in equal_sparsities(data).items()
             for name, e in made.items() if name != "all"}
    if not cells:
        return ""
    told = {}
    for sign, word in ((1, "worse"), (-1, "better")):
        there: dict[str, list[str]] = {}
        for (name, share), e in cells.items():
            if tables.clear(e) and e["effect"] * sign > 0:
                there.setdefault(name, []).append(percent(share))
        count = sum(map(len, there.values()))
        where = "; ".join(f"{tasks.title(name)} at {' and '.join(shares)}" for name, shares in there.items())
        told[word] = (count or "none", f" ({where})" if where else "")
    (worse, at), (better, too) = told.values()
    return (f"at equal sparsity random teachers teach worse, clear of zero, in {worse} of {len(cells)} cases{at}, and "
            f"better in {better}{too}")


def choices_of_both(data: pd.DataFrame) -> str:
    """For each task the sparsity that held-out rows chose by score and at random, among how many, and what the teachers
    so pruned score themselves."""
    parts = []
    for name in task_names(data):
        told = []
        for word, kind in (("by score", "knowledgeable"), ("at random", "random")):
            runs, ran = best(data, name, scores=kind), grid(data, name, scores=kind).query("sparsity > 0")
            if len(runs):
                enough = profiles.profile(runs["profile"].iloc[0]).seeds
                among = (ran.groupby("sparsity")["seed"].nunique() >= enough).sum()
                told.append(f"{share_of(runs)} {word} (of {among} sparsities; such teachers score "
                            f"{figures.number(runs['teacher'].mean() * 100, 0)})")
        parts += [f"on {tasks.title(name)} {' and '.join(told)}"] if len(told) == 2 else []
    return tables.listed("Held-out rows chose", parts, "nothing yet") + "."


def scope(data: pd.DataFrame, verdict: str) -> str:
    """What the verdict on the layer-dropped student is about: the gain and the chosen sparsity of each task."""
    found = {name: best(data, name) for name in task_names(data)}
    gains = [f"{figures.number(versus(runs, of(data, 'KD', name))['effect'], sign=True)} on {tasks.title(name)} with "
             f"{share_of(runs)} removed" for name, runs in found.items() if len(runs)]
    about = {"contradicted": " So this contradicts STARK with its sparsity chosen cleanly on few held-out rows, not "
                             "every sparsity.",
             "holds": " So this supports STARK with its sparsity chosen cleanly, not every sparsity."}
    return f"By task: {', '.join(gains)}.{about.get(verdict, '')}" if gains else "By task: no runs yet."


def better_or_worse(difference: str) -> str:
    """A difference as `tables.said` gives it, in words."""
    sign, size = difference[:1], difference.lstrip("+−")
    return f"{size} points {'worse' if sign == '−' else 'better'}"


def untried(data: pd.DataFrame) -> str:
    """The claims' rivals that stand at their defaults, as their trials have not all run on any task that they have."""
    found = []
    for method in ("TAKD", "MetaKD", "DynaBERT"):
        student = STUDENT_OF_TRIALS.get(method, "dropped")
        where = {"method": method, "args": {"student": student}}
        names = [name for name in task_names(data) if len(of(data, method, name, student))]
        chosen = [verdicts.own(data[data["task"] == name], where, tasks.get(name).verdict_metric)[0] for name in names]
        found += [method] if names and not any(chosen) else []
    if not found:
        return ""
    return (f"Here {' and '.join(found)} stand{'s' if len(found) == 1 else ''} at the defaults, as the trials have not "
            "run: a claim of STARK's against them says as much about those defaults as about STARK.")


def learning_teacher(data: pd.DataFrame) -> str:
    """What MetaKD's teacher, which learns from its student, scores in the end, by task."""
    found = {name: (of(data, "MetaKD", name), of(data, "KD", name)) for name in task_names(data)}
    parts = [f"{text(runs['teacher'])} on {tasks.title(name)}, where it began at {kd['teacher'].mean() * 100:.1f}"
             for name, (runs, kd) in found.items() if len(runs) and len(kd)]
    return f"MetaKD's teacher ends at {', '.join(parts)}." if parts else "MetaKD has no runs yet."


def plugged(data: pd.DataFrame) -> pd.DataFrame:
    """What STARK adds to KD, PKD and CKD at the sparsity where they were run with it, and what the paper's adds."""
    rows = []
    for base in ("KD", "PKD", "CKD"):
        cells = [claims.cell(f"stark-plug/{base}4{end}/all average") for end in (" w/ STARK", "")]
        row = {"method": base, "the paper, eight tasks": f"{cells[0] - cells[1]:+.1f}"}
        found = {name: by_seed(_plugged_into(data, base, name), of(data, base, name)) for name in task_names(data)}
        rows.append(row | {name: said(e) for name, e in pooled(found).items()})
    return pd.DataFrame(rows).fillna(figures.DASH)


def _plugged_into(data: pd.DataFrame, base: str, name: str) -> pd.DataFrame:
    """The runs of a base method with STARK on a task, at the sparsity that all of them have there."""
    at = of(data, "STARK", name, base=["PKD", "CKD"])["sparsity"].unique()
    runs = of(data, "STARK", name, base=base, scores="knowledgeable", protocol="clean", lam=None)
    return runs[runs["sparsity"].isin(at)]


def thin_rows(data: pd.DataFrame) -> str:
    """The tasks that one row of `plugged` has too few seeds on to count them into its *all*, and whether all of its
    students with STARK are left with a constant answer there; empty where there is none."""
    parts = []
    for base in ("KD", "PKD", "CKD"):
        for name in task_names(data):
            runs = _plugged_into(data, base, name)
            if 0 < len(by_seed(runs, of(data, base, name))) < verdicts.FEWEST:
                lost = (runs["score"] == runs["majority"]).all()
                parts.append(f"{base}'s {tasks.title(name)}, with fewer than {verdicts.FEWEST} seeds"
                             + (f" ({base}'s students with STARK all give a constant answer there)" if lost else ""))
    return f"*all* leaves out {'; '.join(parts)}" if parts else ""


def left_out(data: pd.DataFrame) -> str:
    """The tasks that the rows of `plugged` leave out, as no other method ran with STARK there, and what KD with STARK
    comes to on each at the sparsity of its grid; empty where there is none."""
    shown, parts = set(plugged(data)), []
    for name in task_names(data):
        runs, kd = best(data, name), of(data, "KD", name)
        if name not in shown and len(runs) and len(kd):
            parts.append(f"{name}, where PKD and CKD have no such runs and STARK adds {said(versus(runs, kd))} points "
                         f"to KD with {share_of(runs)} removed")
    return f"these rows, their *all* too, leave out {'; and '.join(parts)}" if parts else ""


def unstructured(data: pd.DataFrame) -> pd.DataFrame:
    """Single weights against heads and neurons at the same sparsity: score by task."""
    rows = []
    for name in task_names(data):
        single = of(data, "STARK-unstructured", name)
        whole = of(data, "STARK", name, base="KD", scores="knowledgeable", protocol="clean", lam=None)
        for share in single["sparsity"].unique():
            a, b = (runs[runs["sparsity"] == share] for runs in (single, whole))
            rows.append({"task": name, "sparsity": percent(share), "single weights": text(a["score"]),
                         "heads and neurons": text(b["score"]), "difference": said(versus(a, b)),
                         "teacher, single": text(a["teacher"]), "teacher, whole": text(b["teacher"])})
    return pd.DataFrame(rows)


def scales(data: pd.DataFrame) -> pd.DataFrame:
    """KD and STARK for students and teachers of other sizes beside the usual ones, encoder parameters in millions;
    empty while there is no other size."""
    rows = []
    for name in task_names(data):
        for student in ("dropped", "smaller", "small-teacher", "large-teacher"):
            kd, stark = of(data, "KD", name, student), best(data, name, student)
            if not (len(kd) and len(stark)):
                continue
            sizes = [f"{kd[f'extra_{who}_parameters'].mean() / 1e6:.1f}" for who in ("teacher", "student")]
            rows.append({"task": name, "students": STUDENTS[student], "teacher, M": sizes[0], "student, M": sizes[1],
                         "teacher": f"{kd['teacher'].mean() * 100:.1f}", "KD": text(kd["score"]),
                         "STARK": text(stark["score"]), "sparsity": share_of(stark),
                         "difference": said(versus(stark, kd))})
    return pd.DataFrame(rows if any(row["students"] != STUDENTS["dropped"] for row in rows) else [])


def gap_in_words(data: pd.DataFrame) -> str:
    """STARK minus KD by the gap in size, teacher over student, on the tasks that have more than one."""
    told, found = [], scales(data)
    for name, rows in found.groupby("task", sort=False) if len(found) else ():
        sized = rows.assign(gap=rows["teacher, M"].astype(float) / rows["student, M"].astype(float)).sort_values("gap")
        if len(sized) > 1:
            parts = ", ".join(f"{r['difference']} where the teacher has {r['gap']:.1f} times the student's parameters"
                              for r in sized.to_dict("records"))
            told.append(f"on {name} STARK less KD is, in points, {parts}")
    return "; ".join(told)


def tradeoff(data: pd.DataFrame) -> pd.DataFrame:
    """The runs of every lambda at the sparsity where they were all run, with `lambda`; one that lacks seeds of the
    others waits until they are there."""
    runs = data[(data["method"] == "STARK") & (data["base"] == "KD") & (data["protocol"] == "clean")
                & (data["student"] == "dropped") & data["scores"].isin(["knowledgeable", *LAMBDAS])]
    lam = runs["scores"].map(LAMBDAS).fillna(runs["lam"]).astype(float).fillna(0.5)
    runs = runs.assign(**{"lambda": lam})
    varied = runs[runs["lambda"] != 0.5][["task", "sparsity", "seed"]].drop_duplicates()
    runs = runs.merge(varied, on=["task", "sparsity", "seed"])
    seeds = runs.groupby(["task", "lambda"])["seed"].transform("nunique")
    return runs[seeds == seeds.groupby(runs["task"]).transform("max")]


def tradeoff_in_words(data: pd.DataFrame) -> str:
    """How much was removed where lambda was varied, and how far apart the means over lambda lie, by task."""
    parts = []
    for name, runs in tradeoff(data).groupby("task", sort=False):
        heads = runs["extra_kept_heads"].dropna()
        means = whole(runs, "lambda").groupby("lambda")["score"].mean() * 100
        if len(heads) and len(means):
            rows = "".join(heads.iloc[0])
            parts.append(f"on {tasks.title(name)} {share_of(runs)} of the teacher goes, {rows.count('0')} of its "
                         f"{len(rows)} heads, and the means over λ lie within {np.ptp(means):.2f} points")
    return tables.listed("Here:", parts, "no runs yet") + "."


def costs(data: pd.DataFrame) -> pd.DataFrame:
    """Median seconds of each stage, and megabytes of a training step in float32, by task at half the teacher removed
    (or the nearest sparsity that was run). Scores are taken once a seed, for every sparsity, and some runs recorded the
    moment it takes to look them up: the longest of a seed counts."""
    rows = []
    for name in task_names(data):
        kd, sparse = of(data, "KD", name), grid(data, name)
        above = sparse[sparse["sparsity"] > 0]
        sparse = at_half(above)
        if not (len(kd) and len(sparse)):
            continue
        seconds = {"trial, s": kd["extra_train_seconds"],
                   "scoring, s": above.groupby("seed")["extra_score_seconds"].max(),
                   "asking the sparse teacher, s": sparse["extra_teacher_seconds"],
                   "actual, s": sparse["extra_train_seconds"]}
        memory = {"student's step, MB": kd["extra_memory_weights"] + kd["extra_memory_activations"],
                  "dense teacher, MB": kd["extra_memory_teacher"], "sparse teacher, MB": sparse["extra_memory_teacher"]}
        rows.append({"task": name, "sparsity": share_of(sparse)}
                    | {k: float(v.median()) for k, v in (seconds | memory).items()} | {"n": len(sparse)})
    return pd.DataFrame(rows)


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
