"""One student on one device: our loop beside the two others, the quality of what each leaves, and where a step's time
goes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks import loops
from benchmarks.clock import now, row
from benchmarks.workload import Workload, plain
from kdutils import bert, distil, stark, teacher

WARM = 3  # first steps that are not timed: memory is taken, kernels are chosen
SWEEP = 10  # runs, of one epoch each, among which the teacher's one-off pass is divided


def per_step(ends: list[np.ndarray]) -> np.ndarray:
    """Mean seconds (wall, cpu) of the steps after the first `WARM`."""
    return (ends[-1] - ends[WARM - 1]) / (len(ends) - WARM)


def speed(work: Workload, steps: int) -> list[dict]:
    """Seconds of an epoch: ours as it ran, the others' from their first `steps` steps after the warm ones."""
    vocabulary = work.data.vocabulary
    student = plain(bert.keep_layers(work.whole, work.settings.layers))
    theirs = {name: per_step(loop(work, plain(work.whole), copy.deepcopy(student), vocabulary, steps + WARM))
              for name, loop in (("reference loop", loops.reference), ("Trainer subclass", loops.trainer))}
    started = now()
    signals = teacher.ask(work.teacher, work.data.train)
    asked = now() - started
    started = now()
    _ours(work, signals, epochs=1)
    trained = now() - started
    rows = [row(name, s * work.steps, **{"timed steps": steps}) for name, s in theirs.items()]
    rows.append(row("ours", trained + asked / SWEEP, **{"timed steps": work.steps}))
    rows.append(row("ours, a pass for each run", trained + asked / work.settings.epochs, **{"timed steps": work.steps}))
    for line in rows:
        for name, other in (("reference", rows[0]), ("Trainer", rows[1])):
            line[f"{name} / it"] = other["seconds"] / line["seconds"]
            line[f"{name} / it, cpu"] = other["cpu seconds"] / line["cpu seconds"]
    return [*rows, row("teacher's pass", asked)]


def _ours(work: Workload, signals: teacher.Signals, **options) -> distil.Outcome:
    student = bert.keep_layers(work.teacher, work.settings.layers)
    objective = distil.stark_kd(signals.to(bert.device_of(student)), work.settings.tau)
    return distil.train(student, work.data.train, objective, work.settings, seed=0, **options)


def scoring(work: Workload, batches: int = 6) -> list[dict]:
    """A batch of STARK's scoring pass, which is in float32, beside a training step of the model that it scores."""
    rows = work.data.train
    order = rows.order(work.settings.batch_size, torch.Generator().manual_seed(0))[: batches + 1]
    student = bert.keep_layers(work.teacher, work.settings.layers)
    told = teacher.ask(student, rows).logits.to(bert.device_of(work.teacher))
    dense = copy.deepcopy(work.teacher)

    def scored(which):
        made = [rows.batch(part, bert.device_of(dense)) for part in which]
        started = now()
        stark.score(dense, lambda batch: told[batch["index"]], made, work.settings.tau)
        return now() - started

    def trained(precision):
        ends: list = []
        settings = replace(work.settings, precision=precision)
        distil.train(copy.deepcopy(dense), rows.take(torch.cat(order)), distil.fine_tuning(), settings, seed=0,
                     epochs=1, after_step=lambda *_: ends.append(now()))
        return (ends[-1] - ends[0]) / (len(ends) - 1)

    scored(order[:1])
    score = scored(order[1:]) / batches
    step, full = trained(work.settings.precision), trained("fp32")
    ratio = dict(zip(("training steps", "training steps, cpu"), (score / step).tolist(), strict=True))
    ratio |= dict(zip(("float32 steps", "float32 steps, cpu"), (score / full).tolist(), strict=True))
    return [row("scoring, a batch", score, **ratio), row("fine-tuning the same model, a batch", step),
            row("the same in float32, as scores are computed", full)]


def quality(work: Workload, seeds: int, epochs: float) -> list[dict]:
    """Students of both loops, `seeds` each, from one fine-tuned teacher: mean and standard error on dev and test, and
    the difference in its own standard errors."""
    from kdutils.experiments import common

    spec = common.make("01_pilot", "mini", work.data.task.name, "finetune", 0, layers=work.settings.layers)
    made = common.bench(spec)
    start = bert.keep_layers(made.teacher, work.settings.layers)
    judge = distil.evaluator(made.task, made.data.evaluation, made.signals)
    here = Workload(made.settings, made.data, made.teacher, made.teacher)
    same, steps = torch.arange(len(made.data.vocabulary)), round(here.steps * epochs)

    def by_reference(seed):
        student = plain(start)
        loops.reference(here, plain(made.teacher), student, same, steps, seed)
        return judge(student.eval(), True)

    def by_ours(seed):
        student = copy.deepcopy(start)
        objective = distil.stark_kd(made.signals["train"], made.settings.tau)
        distil.train(student, made.data.train, objective, made.settings, seed=seed, max_steps=steps)
        return judge(student, True)

    loops_of = {"reference loop": by_reference, "ours": by_ours}
    found = {name: [run(seed) for seed in range(seeds)] for name, run in loops_of.items()}
    return [row for split in ("dev", "test") if split in made.data.evaluation
            for row in _compare(found, split, (*made.task.metrics, "nll", "agreement"))]


def _compare(found: dict[str, list[dict]], split: str, metrics) -> list[dict]:
    rows = []
    for metric in metrics:
        values = {name: torch.tensor([run[split][metric] for run in runs], dtype=torch.float64)
                  for name, runs in found.items() if metric in runs[0][split]}
        if not values:
            continue
        means, errors = ({name: float(f(v)) for name, v in values.items()}
                         for f in (torch.mean, lambda v: v.std() / len(v) ** 0.5))
        error = sum(e**2 for e in errors.values()) ** 0.5
        rows.append({"what": f"{split} {metric}", "seeds": len(values["ours"]), "reference": means["reference loop"],
                     "its error": errors["reference loop"], "ours": means["ours"], "our error": errors["ours"],
                     "difference / error": (means["ours"] - means["reference loop"]) / error if error else 0.0})
    return rows


# ------------------------------------------------------------------------------------------------- where the time goes

SCOPES = {"teacher": "teacher", "Optimizer.step": "optimiser", "aten::_foreach": "optimiser"}  # whatever is inside
GROUPS = {  # by the innermost name that matches
    "matrix products": ("addmm", "::mm", "::linear", "mkldnn_linear"),
    "attention": ("bmm", "softmax", "attention"),
    "dropout": ("dropout", "bernoulli", "random_"),
    "norm and activation": ("layer_norm", "gelu", "tanh"),
    "embedding": ("embedding",),
    "copies and casts": ("copy", "_to_copy", "::cat", "::stack", "fill_", "zero"),
}


def profile(work: Workload, steps: int = 6) -> list[dict]:
    """Milliseconds of a step by what they are spent on, in the reference loop and in ours, and the whole step."""
    def before(watch: Callable):
        student = plain(bert.keep_layers(work.whole, work.settings.layers))
        loops.reference(work, plain(work.whole), student, work.data.vocabulary, WARM + steps, after_step=watch)

    def after(watch: Callable):
        signals = teacher.Signals(torch.zeros(len(work.data.train), work.data.task.outputs))
        _ours(work, signals, max_steps=WARM + steps, after_step=lambda step, _: watch(step))

    rows: dict[str, dict] = {}
    for name, loop in (("reference loop", before), ("ours", after)):
        for group, milliseconds in _groups(loop, steps).items():
            rows.setdefault(group, {"what": group, "reference loop": 0.0, "ours": 0.0})[name] = milliseconds
    return sorted(rows.values(), key=lambda row: (row["what"] == "whole step", -row["reference loop"]))


def _groups(loop: Callable, steps: int) -> dict[str, float]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    watched, times = torch.profiler.profile(activities=activities), []

    def watch(step):
        if step == WARM:
            watched.start()
        if step in (WARM, WARM + steps):
            times.append(now())
        if step == WARM + steps:
            watched.stop()

    loop(watch)
    spent: dict[str, float] = {}
    for event in watched.events():
        own = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
        group = _group(event)
        spent[group] = spent.get(group, 0.0) + own / 1000 / steps
    return spent | {"whole step": 1000 * float((times[1] - times[0])[0]) / steps}


def _group(event) -> str:
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    for start, group in SCOPES.items():
        if any(name.startswith(start) for name in names):
            return group
    for name in names:
        for group, parts in GROUPS.items():
            if any(part in name.lower() for part in parts):
                return group
    return "sums, masks and the rest"
