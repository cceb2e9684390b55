"""What chapter 04 shows of its runs: measures, tables beside the paper's, differences, costs. Reads records only."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator

from kdutils import figures, tables, tasks, verdicts
from kdutils.experiments.peakd import THRESHOLD, THRESHOLDS
from kdutils.records import Record

USUAL = {"layers": None, "init": None}  # arguments of the chapter's main comparison
TRIED = ("batch_size", "lr", "epochs", "tau", "alpha", "beta")
MOST = 6  # trials of a method on a task that are shown
OPTIONAL = (*USUAL, *TRIED, "threshold", "ptp_epochs", "created", "extra_label_counts", "extra_ptp_seconds",
            "extra_ptp_loss", "extra_ptp_epoch")
DEPTH = ("PatientKD", "SPS-2", "Pea-KD")  # methods compared at several depths and starts
MARKED = {"score": "", "paper": "paper_"}  # measures that the teacher and a constant answer have too, by prefix
LABELS = ("sure, right", "unsure, right", "sure, wrong", "unsure, wrong")
# Methods and arguments as readers know them (see `called`); where there is nothing here, by their own name.
NAMES = {"PatientKD": "Patient KD", "SPS-both-swapped": "both passes swapped", "stacked-unshared": "unshared stack",
         "extra-finetune": "extra fine-tuning", "PTP-crossfit": "PTP cross-fitted",
         "alpha": "α", "beta": "β", "tau": "τ", "lr": "rate", "batch_size": "batch size"}
PTP = ("PTP-1", "PTP-2", "Pea-KD", "PTP-slow", "PTP-long", "PTP-crossfit")  # at the usual threshold
DRAWN = ("SPS-2", "extra-finetune", "Pea-KD", "PTP-slow")  # the starts whose curves are drawn
NEAR = 0.1  # share of a loss within which others are told to be near it
PLANNED = "a sweep over the threshold is planned"
MARGIN = 0.02  # of cross-entropy, by which PTP has to do better than the shares of its labels
# What two methods differ in -> the two, of which the first has it.
SHARING = {"running the layers twice": ("SPS-1", "PatientKD"), "exchanging queries and keys": ("SPS-2", "SPS-1"),
           "exchanging them in the second pass only": ("SPS-2", "SPS-both-swapped"),
           "sharing the parameters": ("SPS-2", "stacked-unshared"), "SPS as a whole": ("SPS-2", "PatientKD")}
STARTED = {name: SHARING[name] for name in SHARING if "second pass" not in name} | {
    "PTP as a whole": ("Pea-KD", "SPS-2"), "Pea-KD over Patient KD": ("Pea-KD", "PatientKD")}
BEFORE = {"PTP as a whole": ("Pea-KD", "SPS-2"), "a second round of training": ("extra-finetune", "SPS-2"),
          "PTP's labels instead of the true ones": ("Pea-KD", "extra-finetune"),
          "the slow rate": ("PTP-slow", "Pea-KD"), "ten epochs": ("PTP-long", "Pea-KD"),
          "labels from two half-teachers": ("PTP-crossfit", "Pea-KD")}


def measured(frame: pd.DataFrame, records: Iterable[Record] = ()) -> pd.DataFrame:
    """`tables.measured`; `paper` is the paper's metric at the best dev epoch, `paper_teacher` and `paper_majority` what
    the teacher and a constant answer score by it, `created` when each of `records`, the frame's own, was made."""
    if records:
        frame = frame.assign(created=[record["created"] for record in records])
    return tables.measured(frame, OPTIONAL, paper="best_dev_{paper}", paper_teacher="extra_teacher_dev_{paper}",
                           paper_majority="extra_majority_dev_{paper}")


def called(name: str) -> str:
    """A method or an argument as readers know it."""
    return NAMES.get(name, name)


def of(data: pd.DataFrame, method: str, task: str, **args) -> pd.DataFrame:
    """The runs of a method on a task, at the chapter's usual depth and start unless `args` say otherwise."""
    return verdicts.select(data[data["task"] == task], {"method": method, "args": USUAL | args})


def trials(data: pd.DataFrame) -> pd.DataFrame:
    """The `MOST` best trials of a method on a task, the best first: what was varied, and the score on held-out rows."""
    tried = data[data["method"].str.startswith("tune-")]
    rows = []
    for (task, method), some in tried.groupby(["task", "method"], sort=False):
        varied = [name for name in TRIED if some[name].notna().any()]
        rows += [{"task": task, "method": called(method.removeprefix("tune-"))}
                 | {called(name): f"{row[name]:g}" for name in varied} | {"held-out score": 100 * row["held"]}
                 for _, row in some.nlargest(MOST, "held").iterrows()]
    return pd.DataFrame(rows)


def shown(data: pd.DataFrame) -> str:
    """How many of a method's trials on a task are in the table of `trials`."""
    tried = data[data["method"].str.startswith("tune-")].groupby(["task", "method"]).size().max()
    return f"the best {MOST} of {tried}" if tried > MOST else "all that were tried"


def marks(data: pd.DataFrame, task: str, prefix: str = "") -> dict[str, str]:
    """`tables.marks` of a task, where every teacher that taught students counts once, however many it taught."""
    return tables.marks(_teachers(data, task), prefix)


def _teachers(data: pd.DataFrame, task: str) -> pd.DataFrame:
    """One row for each teacher that taught students of a task: its scores, and a constant answer's. (The same weights
    have one score in each dtype that they were asked in, of which a row has the mean.)"""
    some = data[(data["task"] == task) & data["score"].notna()]
    known = [f"{prefix}{who}" for prefix in MARKED.values() for who in ("teacher", "majority")]
    return some[known].groupby(verdicts.teachers(some)).mean()


def rebuilt(data: pd.DataFrame, methods: Iterable[str], measure: str = "score", **args) -> pd.DataFrame:
    """One row a method that has runs: `measure` on each task as `mean ± half width (n)`, in points; for the score and
    the paper's measure also the teacher and a constant answer."""
    rows = []
    for name in tables.task_names(data, mismatched=True):
        task = tasks.get(name)
        metric = {"score": task.verdict_metric, "paper": task.metrics[0]}.get(measure, measure)
        cells = {called(method): tables.text(of(data, method, name, **args)[measure]) for method in methods}
        if measure in MARKED:
            cells |= marks(data, name, MARKED[measure])
        rows.append(pd.Series(cells, name=f"{name} {metric}"))
    made = pd.concat(rows, axis=1)
    has = (made != figures.DASH).loc[[called(method) for method in methods]]
    known = [name for name in made.index if name not in has.index or has.loc[name].any()] if has.any(axis=None) else []
    return made.loc[known, has.columns[has.any()]].rename_axis("method").reset_index()


def near_constant(data: pd.DataFrame) -> str:
    """On tasks whose paper measure is F1, how many kinds of students (usual depth and start, five seeds) a constant
    answer is like, as it lies within their 95 % interval: by F1 and by the verdicts' metric. Nothing where most differ
    from it by F1."""
    told = []
    usual = data[data["layers"].isna() & data["init"].isna() & ~data["method"].str.startswith("tune-")]
    for name, some in usual.groupby("task", sort=False):
        task = tasks.get(name)
        groups = [found for _, found in some.groupby("method") if len(found) >= verdicts.FEWEST]

        def like(measure, prefix, groups=groups):
            found = ((figures.interval(100 * part[measure]), 100 * part[f"{prefix}majority"].mean()) for part in groups)
            return sum(abs(mean - constant) <= half for (mean, half, _), constant in found)

        near, other = like("paper", "paper_"), like("score", "")
        if task.metrics[0] == "f1" and other < near and 2 * near > len(groups):
            constant = marks(data, name, "paper_")["constant answer"]
            most = f"all but {other}" if other else "all"
            told.append(f"on {name} {near} of this chapter's {len(groups)} kinds of students with five seeds cannot be "
                        f"told from a constant answer by f1 ({constant}, within their 95 % intervals), so that this "
                        f"column says little; by {task.verdict_metric} {most} of them can, and that is the measure to "
                        "read")
    return "; ".join(told)


def differences(data: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> dict[str, dict]:
    """A minus B in score, paired by seed, for each pair on each task that has runs of both; by label."""
    found = {f"{called(a)} − {called(b)}, {name}": tables.versus(of(data, a, name), of(data, b, name))
             for a, b in pairs for name in tables.task_names(data)}
    return {tables.readable(label): estimate for label, estimate in found.items() if estimate["n"]}


def parts(data: pd.DataFrame, named: dict[str, tuple[str, str]], **args) -> str:
    """What each difference of `named` (see `SHARING`) comes to, by task in one sentence, with those that have five
    seeds and an interval that excludes zero; at the usual depth unless `args` say otherwise."""
    told = []
    for name in tables.task_names(data):
        found = {what: tables.versus(of(data, a, name, **args), of(data, b, name, **args))
                 for what, (a, b) in named.items()}
        found = {what: estimate for what, estimate in found.items() if estimate["n"]}
        if found:
            beyond = ", ".join(what for what, estimate in found.items() if tables.clear(estimate)) or "none"
            told.append(f"on {name}, in points, " + ", ".join(f"{what} {tables.said(e)}" for what, e in found.items())
                        + f" (clear of zero: {beyond})")
    return "; ".join(told)


def taught(data: pd.DataFrame) -> str:
    """How many pairs of [CLS] states Patient KD and SPS-2 compare on each task, and with what weight: a pair for every
    layer run but the last (`peakd.pairs`)."""
    told = []
    for name in tables.task_names(data):
        plain, shared = of(data, "PatientKD", name), of(data, "SPS-2", name)
        if len(plain) and len(shared):
            counts = [int(runs["extra_effective"].max()) - 1 for runs in (plain, shared)]
            told.append(f"on {name} Patient KD compares {counts[0]} and SPS {counts[1]} of the student's [CLS] states "
                        f"with the teacher's, at β = {shared['extra_beta'].max():g}")
    return "; ".join(told)


def controls(data: pd.DataFrame) -> str:
    """On which tasks the two controls of SPS have run."""
    unshared, swapped = (" and ".join(tasks.title(name) for name in tables.task_names(data)
                                      if len(of(data, method, name))) or "no task yet"
                         for method in ("stacked-unshared", "SPS-both-swapped"))
    return f"Here the first control has run on {unshared}, the second on {swapped}."


def dotted(data: pd.DataFrame, methods: Iterable[str]) -> str:
    """The mean score of each method by task, in points: `dots` for those who do not see them."""
    told = []
    for name in tables.task_names(data):
        means = {method: of(data, method, name)["score"].mean() * 100 for method in methods}
        listed = ", ".join(f"{called(method)} {mean:.1f}" for method, mean in means.items() if pd.notna(mean))
        told.append(f"{name}: {listed or figures.DASH}")
    about = "Students with and without shared layers, runs, means and intervals."
    return tables.readable(tables.listed(about, told))


def costs(data: pd.DataFrame, methods: Iterable[str], task: str) -> pd.DataFrame:
    """What students of a task cost; times are medians of `n` runs. Activations follow the number of layers run
    and the version of the code, so that each number of layers has those of its newest run."""
    usual = {method: of(data, method, task) for method in methods}
    newest = pd.concat(usual.values()).sort_values("created", kind="stable")
    kept = newest.groupby("extra_effective")["extra_activation_bytes"].last() / 1e6
    rows = []
    for method, found in usual.items():
        rows.append({
            "task": task, "method": called(method), "encoder, M": found["extra_encoder"].mean() / 1e6,
            "layers run": found["extra_effective"].max(),
            "activations, MB": kept.get(found["extra_effective"].max()),
            "ms a step": found["extra_step_seconds"].median() * 1000,
            "before KD, s": found["extra_ptp_seconds"].median(), "KD, s": found["extra_train_seconds"].median(),
            "n": found["extra_step_seconds"].notna().sum(),
        })
    made = pd.DataFrame(rows)
    return made[made["n"] > 0].astype({"layers run": "Int64"})


def shares(data: pd.DataFrame) -> pd.DataFrame:
    """Share of each PTP label on train, in percent, by task, labelling teacher and threshold."""
    rows = []
    for row in data[data["method"] == "PTP-labels"].to_dict("records"):
        by = "two half-teachers" if row.get("by") == "halves" else "the teacher"
        for threshold in sorted((THRESHOLD, *THRESHOLDS)):
            counts = pd.Series(row[f"extra_labels_{threshold:g}"], index=LABELS)
            rows.append({"task": row["task"], "labels by": by, "t": f"{threshold:g}"}
                        | (100 * counts / counts.sum()).to_dict())
    return pd.DataFrame(rows, columns=["task", "labels by", "t", *LABELS])


def mostly_right(data: pd.DataFrame) -> str:
    """How often the teacher is right on the rows that it labels, and what that leaves for the two wrong labels."""
    found = shares(data).query("`labels by` == 'the teacher'").drop_duplicates("task")
    wrong = found[["sure, wrong", "unsure, wrong"]].sum(axis=1)
    return "; ".join(f"on {name} the teacher is right on {100 - w:.0f} % of its own training rows, so that the two "
                     f"wrong labels together have {w:.1f} %" for name, w in zip(found["task"], wrong, strict=True))


def pretraining(data: pd.DataFrame, epochs: int) -> pd.DataFrame:
    """What PTP reached on the rows held out of it, by task and method: cross-entropy (mean, least to most) beside the
    entropy of the labels' shares, which an answer of nothing but those shares would reach; in how many runs it is
    below that by more than MARGIN; the epochs whose weights were kept, and in how many runs the last one allowed
    (`epochs`, where a run does not say otherwise) was still the best."""
    rows = []
    for name in tables.task_names(data):
        for method in PTP:
            some = of(data, method, name).dropna(subset="extra_ptp_loss")
            if some.empty:
                continue
            loss, kept = some["extra_ptp_loss"], some["extra_ptp_epoch"]
            chance = some["extra_label_counts"].map(entropy)
            last = (kept == some["ptp_epochs"].astype(float).fillna(epochs)).sum()
            rows.append({"task": name, "method": called(method),
                         "cross-entropy": f"{loss.mean():.2f} ({loss.min():.2f} to {loss.max():.2f})",
                         "of the shares": f"{chance.mean():.2f}",
                         "below that": f"{(loss < chance - MARGIN).sum()} of {len(some)}",
                         "epochs kept": ", ".join(f"{epoch:.0f}" for epoch in sorted(set(kept))),
                         "still best at the end": f"{last} of {len(some)}"})
    return pd.DataFrame(rows)


def entropy(counts: Iterable[float]) -> float:
    """Entropy in nats of the shares of `counts`."""
    shares = np.array([count for count in counts if count]) / sum(counts)
    return float(-(shares * np.log(shares)).sum())


def learned(table: pd.DataFrame) -> str:
    """What `pretraining` says of how often PTP's labels were learned."""
    if table.empty:
        return ""
    shown = table["below that"] + " runs of " + table["method"]
    told = [f"on {name} in {', '.join(some)}" for name, some in shown.groupby(table["task"], sort=False)]
    return f"PTP's loss falls below that of the shares by more than {MARGIN:g} {'; '.join(told)}"


def thresholds(data: pd.DataFrame) -> pd.DataFrame:
    """The runs of the threshold sweep, and Pea-KD's of the same seeds, which are its point at the usual threshold."""
    usual = data[data["layers"].isna() & data["init"].isna()]
    swept, main = usual[usual["method"] == "PTP-threshold"], usual[usual["method"] == "Pea-KD"]
    main = main.merge(swept[["task", "seed"]].drop_duplicates()).assign(threshold=THRESHOLD)
    return pd.concat([swept, main]) if len(main) else swept


def depths(data: pd.DataFrame) -> pd.DataFrame:
    """The runs of methods that have students of more than one depth on a task."""
    found = data[data["method"].isin(DEPTH) & data["init"].isna()]
    return found[found.groupby(["task", "method"])["extra_layers"].transform("nunique") > 1]


def by_depth(data: pd.DataFrame) -> pd.DataFrame:
    """Score by task and number of independent layers, one column a method; then the teacher's and a constant answer's.
    Empty where every task has one depth, which other tables show."""
    if depths(data).empty:
        return pd.DataFrame()
    found = data[data["method"].isin(DEPTH) & data["init"].isna()].sort_values(["task", "extra_layers"])
    wide = found.pivot_table(index=["task", "extra_layers"], columns="method", values="score", aggfunc=tables.text)
    wide = wide.reindex(columns=[name for name in DEPTH if name in wide]).fillna(figures.DASH)
    wide = wide.reset_index().rename_axis(columns=None).astype({"extra_layers": int})
    told = {name: marks(data, name) for name in wide["task"].unique()}
    for who in ("teacher", "constant answer"):
        wide[who] = [told[name][who] for name in wide["task"]]
    return wide.rename(columns={"extra_layers": "independent layers"} | NAMES)


def by_start(data: pd.DataFrame) -> pd.DataFrame:
    """The differences of `STARTED` at both starts, paired by seed, on tasks where the second has runs of both."""
    rows = []
    for name in tables.task_names(data):
        for what, (a, b) in STARTED.items():
            spread, bottom = (tables.versus(of(data, a, name, **start), of(data, b, name, **start))
                              for start in ({}, {"init": "bottom"}))
            if bottom["n"]:
                rows.append({"task": name, "difference": what, "layers spread over the encoder": tables.said(spread),
                             "the first layers, as in the paper": tables.said(bottom)})
    return pd.DataFrame(rows)


def from_the_papers_start(data: pd.DataFrame) -> str:
    """What SPS gains over Patient KD where students start from the first layers, by task."""
    gains = {name: tables.versus(of(data, "SPS-2", name, init="bottom"), of(data, "PatientKD", name, init="bottom"))
             for name in tables.task_names(data)}
    told = ", ".join(f"{name} {tables.said(e)}" for name, e in gains.items() if e["n"])
    return tables.readable(told) or "no runs yet"


def at_depths(data: pd.DataFrame) -> str:
    """What `STARTED` comes to at each number of independent layers beside the usual one."""
    return "; ".join(f"with {layers:g} independent {'layer' if layers == 1 else 'layers'}, {told}"
                     for layers in sorted(depths(data)["layers"].dropna().unique())
                     if (told := parts(data, STARTED, layers=layers)))


def curves(records: Iterable[Record], methods: Iterable[str]) -> pd.DataFrame:
    """Training loss of KD by task, method, seed and step, at the chapter's usual depth and start; on each task of the
    methods that have at least half as many seeds there as the method with most, the seeds that all of them have."""
    rows = [{name: r["spec"][name] for name in ("task", "method", "seed")} | {"step": step, "loss": loss}
            for r in records if r["spec"]["method"] in set(methods) and not set(USUAL) & set(r["spec"]["args"])
            for step, loss in r["curve"]]
    found = pd.DataFrame(rows, columns=["task", "method", "seed", "step", "loss"])
    seeds = found.groupby(["task", "method"])["seed"].transform("nunique")
    found = found[2 * seeds >= seeds.groupby(found["task"]).transform("max")]
    ran = found.groupby(["task", "seed"])["method"].transform("nunique")
    return found[ran == found.groupby("task")["method"].transform("nunique")].reset_index(drop=True)


def drawn(points: pd.DataFrame) -> pd.DataFrame:
    """The starts of `curves` that are drawn, on the tasks that have two of them or more to compare."""
    some = points[points["method"].isin(DRAWN)]
    return some[some.groupby("task")["method"].transform("nunique") > 1]


def began(points: pd.DataFrame) -> str:
    """How the first and the last loss of `curves` after the variants of PTP compare with those of SPS-2, by task."""
    told = []
    for name, some in points.groupby("task", sort=False):
        means = some.pivot_table(index="step", columns="method", values="loss")
        variants = [method for method in PTP if method in means]
        if variants and "SPS-2" in means:
            first, last = (_beside(means.iloc[i][variants], means.iloc[i]["SPS-2"]) for i in (0, -1))
            told.append(f"on {name} the mean loss with PTP ({', '.join(map(called, variants))}) begins {first} without "
                        f"it, and ends {last} without it")
    return "; ".join(told)


def _beside(losses: pd.Series, plain: float) -> str:
    low, high = losses.min(), losses.max()
    if max(high - plain, plain - low) <= NEAR * plain:
        word = f"within {100 * NEAR:.0f} % of"
    else:
        word = "higher than" if low > plain else "lower than" if high < plain else "partly above and partly below"
    shown = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
    return f"at {shown}, {word} the {plain:.2f}"


def ends(points: pd.DataFrame) -> str:
    """The first and the last loss of `drawn`, mean over seeds, of each start on each task: `falling` for those who do
    not see it."""
    told = []
    for name, some in points.groupby("task", sort=False):
        means = some.pivot_table(index="step", columns="method", values="loss", sort=False)
        first, last = means.iloc[0], means.iloc[-1]
        lines = [f"{first[method]:.2f} to {last[method]:.2f} after {called(method)}" for method in means]
        plain = first.get("SPS-2", float("nan"))
        higher, lower = ([m for m in means if sign * (first[m] - plain) > 0] for sign in (1, -1))
        told.append(f"on {name} the mean loss goes from " + ", ".join(lines)
                    + "".join(f", beginning {how} than SPS-2's after {', '.join(map(called, names))}"
                              for how, names in (("higher", higher), ("lower", lower)) if names))
    return tables.readable(tables.listed("Training loss of KD after different starts:", told, "no runs yet") + ".")


# -------------------------------------------------------------------------------------------------------------- figures


def dots(data: pd.DataFrame, methods: Iterable[str]):
    """A panel a task: every run of each method, with means and intervals."""
    names, methods = tables.task_names(data), list(methods)
    fig, axes = figures.panels(rows=len(names), height=2.3)
    for ax, name in zip(axes, names, strict=True):
        some = pd.concat([of(data, method, name) for method in methods]).replace({"method": NAMES})
        figures.dots(ax, some, "score", "method")
        ax.set(title=tables.readable(name), xlabel=_points(name))
    return fig


def falling(points: pd.DataFrame):
    """A panel a task: training loss of KD (log scale) over steps, a line for each start, the same in every panel."""
    if points.empty:
        return figures.placeholder()
    there = [called(method) for method in DRAWN if method in set(points["method"])]
    fig, axes = figures.panels(points["task"].nunique(), height=3.4)
    for ax, (name, part) in zip(axes, points.groupby("task", sort=False), strict=True):
        unscaled = part.assign(loss=part["loss"] / figures.scale("loss"))  # a loss is no fraction
        unscaled = unscaled.replace({"method": NAMES})
        figures.curve(ax, unscaled, "step", "loss", "method", hue_order=there, markevery=10)
        ax.set(title=tables.readable(f"{name} (n = {part['seed'].nunique()})"), ylabel="training loss", yscale="log")
        ax.minorticks_off()
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
    lines = axes[0].get_legend_handles_labels()
    for ax in axes:
        ax.get_legend().remove()
    fig.legend(*lines, loc="outside upper center", ncols=4)
    return fig


def by_threshold(swept: pd.DataFrame):
    """A panel a task: Pea-KD's score over PTP's threshold."""
    if swept.empty:
        return figures.placeholder(PLANNED)
    fig, axes = figures.panels(swept["task"].nunique())
    for ax, (name, part) in zip(axes, swept.groupby("task", sort=False), strict=True):
        figures.curve(ax, part, "threshold", "score")
        ax.set(title=tables.readable(f"{name} (n = {part['seed'].nunique()})"), ylabel=_points(name))
    return fig


def by_threshold_in_words(swept: pd.DataFrame) -> str:
    """What `by_threshold`'s figure says to those who do not see it."""
    return _over(swept.assign(method="Pea-KD"), "threshold", "Scores over PTP's threshold:", PLANNED)


def by_layers(data: pd.DataFrame):
    """A panel a task: score over the number of independent layers, and the teacher's as a dashed line; methods with
    students of one depth are left out."""
    found = depths(data)
    if found.empty:
        return figures.placeholder("students of a second number of layers are planned")
    there = [called(method) for method in DEPTH if method in set(found["method"])]
    fig, axes = figures.panels(found["task"].nunique(), height=3.2)
    for ax, (name, part) in zip(axes, found.replace({"method": NAMES}).groupby("task", sort=False), strict=True):
        figures.curve(ax, part, "extra_layers", "score", "method", hue_order=there, legend=ax is axes[0])
        ax.axhline(100 * _teachers(data, name)["teacher"].mean(), color="#888888", linestyle="--", linewidth=1)
        ax.set(title=tables.readable(name), xlabel="independent layers", ylabel=_points(name))
        ax.set_xticks(sorted(part["extra_layers"].unique()))
    axes[0].get_legend().set_title("")
    return fig


def by_layers_in_words(data: pd.DataFrame) -> str:
    """What `by_layers`'s figure says to those who do not see it."""
    return _over(depths(data), "extra_layers", "Scores over the number of independent layers:", "one number so far")


def _over(found: pd.DataFrame, x: str, what: str, none: str) -> str:
    told = []
    for (name, method), some in found.groupby(["task", "method"], sort=False):
        means = some.groupby(x)["score"].mean() * 100
        told.append(f"{name}, {called(method)} " + ", ".join(f"{mean:.1f} at {at:g}" for at, mean in means.items()))
    return tables.readable(tables.listed(what, told, none))


def _points(task: str) -> str:
    return tables.readable(f"{tasks.get(task).verdict_metric}, points")
