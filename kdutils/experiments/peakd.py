"""Chapter 04, Pea-KD: Tables 2, 4 and 5 rebuilt, with the controls that the paper lacks.

Every run starts from the pre-trained layers `settings.layers`, stacks and pre-trains them as its method says, and then
goes through the same KD. `args` name what differs from the chapter's main comparison: `layers`, the independent ones,
`init` ("bottom": the paper's first layers), `threshold`, `ptp_lr`, PTP's own rate where it is not KD's, and
`ptp_epochs` and `ptp_patience`, when it ends. A grid's
trials name `alpha`, `beta` and, in the paper's grid, `tau`, `batch_size`, `lr` and `epochs`; the last three are no
settings here because the teacher would then change with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from kdutils import profiles, tasks
from kdutils.experiments import common, packing
from kdutils.records import UNPUBLISHED, Spec, Store, run_once
from kdutils.spec import to_json

CHAPTER = "04_peakd"
SPS = ("PatientKD", "SPS-1", "SPS-2")
PTP = {"Pea-KD": "ptp", "PTP-1": "ptp-1", "PTP-2": "ptp-2", "PTP-slow": "ptp", "PTP-long": "ptp",
       "PTP-threshold": "ptp", "PTP-crossfit": "ptp"}  # what comes before KD, on SPS-2
SLOW = 2e-5  # the rate at which the released code pre-trains
LONG = {"ptp_epochs": 10, "ptp_patience": 3}  # PTP to convergence also where one epoch's loss is noisy
CONTROLS = ("extra-finetune", "stacked-unshared", "SPS-both-swapped")
THRESHOLD, THRESHOLDS = 0.9, (0.6, 0.7, 0.8, 0.95)
GRID = [{"alpha": alpha, "beta": beta} for alpha in (0.1, 0.7) for beta in (0.0, 100.0, 500.0)]
TUNED = {"mini": ("mrpc", "sst2")}  # where Patient KD's best of GRID is chosen first; elsewhere the released code's
PAPER = {"batch_size": 32, "epochs": 6}  # inside the paper's grid, which has no best point in print
TAUS = (5.0, 10.0, 20.0)  # Patient KD's: the paper has a temperature, but prints no values of it
PAPER_GRID = [{"batch_size": size, "lr": lr, "epochs": epochs, "tau": tau} | values for size, lr, epochs, tau, values in
              product((32, 64), (1e-5, 2e-5, 3e-5, 5e-5), (4, 6, 10), TAUS, GRID)]


def independent(profile: str, task: str) -> int:
    """Number of independent layers of the chapter's main comparison."""
    if profile == "mini" and task in ("sst2", "rotten"):
        return 2
    return min(3, profiles.settings(profile, task).depth // 2)


def kept(settings: profiles.Settings, layers: int, init: str = "spread") -> tuple[int, ...]:
    """The pre-trained layers, from 1, that a student of `layers` starts from: "bottom" are the first ones, as in the
    paper; else the profile's choice, or evenly spaced ones that end in the last."""
    if init == "bottom":
        return tuple(range(1, layers + 1))
    if layers == len(settings.layers):
        return settings.layers
    return tuple(profiles.matched(i, layers, settings.depth) for i in range(1, layers + 1))


def one(profile: str, task: str, method: str, seed: int, layers: int | None = None, init: str = "", **args) -> Spec:
    """The spec of one run."""
    usual = independent(profile, task)
    paper = profile == "paper"
    start = kept(profiles.settings(profile, task), layers or usual, init or ("bottom" if paper else "spread"))
    named = {"layers": layers} if layers not in (None, usual) else {}
    named |= {"init": init} if init else {}
    named |= PAPER if paper else {}
    return common.make(CHAPTER, profile, task, method, seed, named | args, layers=start)


# --------------------------------------------------------------------------------------------------------------- plan


def plan(profile: str, task: str) -> list[Spec]:
    """Tuning, then the main comparison, the ablations and controls, and the other depths; with them PTP's labels."""
    return list(dict.fromkeys([*tuning(profile, task), *_labelled(profile, task), *_compared(profile, task),
                               *_grid(profile, task)]))


def tuning(profile: str, task: str) -> list[Spec]:
    """Trials of the objective's weights: Patient KD, the first seed."""
    trials = GRID if task in TUNED.get(profile, ()) else []
    return [one(profile, task, "tune-PatientKD", 0, **values) for values in trials]


def _labelled(profile: str, task: str) -> list[Spec]:
    """What PTP's labels are, by the teacher and, where two more teachers are no burden, by cross-fitted ones."""
    if tasks.get(task).regression:
        return []
    halves = [] if profile in UNPUBLISHED else [one(profile, task, "PTP-labels", 0, by="halves")]
    return [one(profile, task, "PTP-labels", 0), *halves]


def _compared(profile: str, task: str) -> Iterator[Spec]:
    chosen, light = profiles.profile(profile), profile in UNPUBLISHED
    classes = not tasks.get(task).regression  # a regression has no classes to be confident of
    few, more = range(chosen.seeds), chosen.more_seeds(task)
    rest = few[:1] if light else few
    shown = {"smoke": 1, "demo": 0}.get(profile)  # how many thresholds and further depths
    every = (*SPS, "Pea-KD") if classes else SPS
    ends = ("PatientKD", "Pea-KD" if classes else "SPS-2")

    def runs(methods, seeds=rest, **args):
        return (one(profile, task, method, seed, **args) for seed in seeds for method in methods)

    yield from runs(every, rest)
    yield from runs(ends, few[len(rest) :])
    yield from runs([method for method in every if method != "SPS-1"], more)
    yield from runs(("PTP-1", "PTP-2", "extra-finetune") if classes else ())
    yield from runs(CONTROLS[1:])
    if profile != "paper":  # where it is every run's start
        yield from runs(ends[:1] if light else dict.fromkeys([*ends, *SPS, "stacked-unshared"]), init="bottom")
    far = profiles.settings(profile, task).lr > 2 * SLOW
    yield from runs(["PTP-slow"] if classes and far else (), ptp_lr=SLOW)
    yield from runs(["PTP-long"] if classes and shown != 0 else (), **LONG)
    for threshold in THRESHOLDS[:shown] if classes else ():
        yield from runs(["PTP-threshold"], threshold=threshold)
    for layers in ((1, 2, 6) if profile == "paper" else (1, 2, 3))[:shown]:
        if layers != independent(profile, task):
            yield from runs(ends, layers=layers)
    yield from runs(["PTP-crossfit"] if classes and not light else ())  # it takes two more teachers


def _grid(profile: str, task: str) -> Iterator[Spec]:
    """The paper's grid, the first seed: a cell of its tables is the best of one."""
    methods = ("PatientKD", "Pea-KD") if profile == "paper" and not tasks.get(task).regression else ()
    return (one(profile, task, f"tune-{method}", 0, **values) for method in methods for values in PAPER_GRID)


# --------------------------------------------------------------------------------------------------------------- runs


def kind(spec: Spec) -> str | None:
    """What runs that share a pack have in common: a method without pre-training, and its arguments. None for runs that
    train alone."""
    return f"{spec.method} {to_json(spec.args)}" if spec.method in SPS else None


def stages(spec: Spec) -> packing.Stages:
    """A run, see `packing`: build the student, pre-train it where the method does, distil it, and say what it cost."""
    from kdutils import bert, peakd

    without_student = {"fold-teacher": _fold_teacher, "PTP-labels": _label_counts}.get(spec.method)
    if without_student:
        return without_student(spec)
    made = common.bench(spec, states=True)
    changes = {name: spec.args[name] for name in ("batch_size", "lr", "epochs") if name in spec.args}
    made = replace(made, settings=replace(made.settings, **changes))
    student, train = _student(spec, made), made.data.train
    effective = len(student.bert.encoder.layer)
    longest = train.batch(train.lengths.argsort(descending=True)[: made.settings.batch_size])
    extra = {"layers": len(made.settings.layers), "effective": effective, "encoder": bert.counts(student)["encoder"],
             "activation_bytes": peakd.activation_bytes(student, longest)}
    extra |= common.about(made) | _pretrained(spec, made, student)
    terms = _weights(spec)
    objective = peakd.objective(made.signals["train"], peakd.pairs(effective, made.settings.depth), **terms)
    result = yield packing.Distillation(made, student, objective, spec.seed)
    result["extra"] |= extra | terms | {"step_seconds": result["extra"]["train_seconds"] / result["extra"]["steps"]}
    return result


def _weights(spec: Spec) -> dict[str, float]:
    """The objective's alpha, beta and tau: the spec's own, or chosen from the trials (made first where they are
    missing), or the released code's."""
    from kdutils import peakd
    from kdutils.experiments import run

    own = {"alpha": peakd.ALPHA, "beta": peakd.BETA, "tau": peakd.TAU}
    if "alpha" not in spec.args and (trials := tuning(spec.profile, spec.task)):
        own |= common.best([run_once(trial, run, Store()) for trial in trials])["args"]
    return {name: spec.args.get(name, value) for name, value in own.items()}


def _student(spec: Spec, made):
    """The pre-trained layers of the spec, stacked as its method says. The paper's six-layer student shares its top
    three."""
    from kdutils import bert, peakd

    student = bert.keep_layers(common.pretrained(made.settings, made.data, spec.seed), made.settings.layers)
    method, top = spec.method.removeprefix("tune-"), 3 if len(made.settings.layers) == 6 else None
    if method == "PatientKD":
        return student
    if method == "SPS-1":
        return peakd.share(student, swap=False, top=top)
    if method == "SPS-both-swapped":
        return peakd.share(peakd.exchange(student), swap=False, top=top)
    if method == "stacked-unshared":
        return peakd.unshare(peakd.share(student, top=top))
    if method in ("SPS-2", "extra-finetune", *PTP):
        return peakd.share(student, top=top)
    raise ValueError(f"method: got {spec.method!r}; allowed: {', '.join((*SPS, *PTP, *CONTROLS))}")


def _pretrained(spec: Spec, made, student) -> dict:
    """PTP, or its control, on `student` in place; returns what it took."""
    from kdutils import peakd

    train, settings, method = made.data.train, made.settings, spec.method.removeprefix("tune-")
    if method == "extra-finetune":
        took = peakd.pretrain(student, train, made.task.outputs, settings, spec.seed, keep=_epoch_of_ptp(spec))
        return {"ptp_steps": took.steps, "ptp_seconds": took.seconds, "ptp_epoch": took.best["epoch"]}
    if method not in PTP:
        return {}
    variant = PTP[method]
    logits = _crossfit(spec, made) if method == "PTP-crossfit" else made.signals["train"].logits.cpu()
    threshold = spec.args["threshold"] if method == "PTP-threshold" else THRESHOLD
    labels = peakd.ptp_labels(logits, train.labels, threshold, variant)
    classes = peakd.VARIANTS[variant]
    settings = replace(settings, lr=spec.args.get("ptp_lr", settings.lr))
    ends = {name: spec.args[f"ptp_{name}"] for name in ("epochs", "patience") if f"ptp_{name}" in spec.args}
    took = peakd.pretrain(student, replace(train, labels=labels), classes, settings, spec.seed, **ends)
    return {"label_counts": labels.bincount(minlength=classes).tolist(), "ptp_steps": took.steps,
            "ptp_seconds": took.seconds, "ptp_epoch": took.best["epoch"], "ptp_loss": -took.best["dev"]["gain"]}


def _label_counts(spec: Spec) -> dict:
    """How many rows of train get each PTP label at every threshold (`by` "halves": from cross-fitted teachers); nothing
    is distilled."""
    from kdutils import peakd

    made = common.bench(spec)
    logits = _crossfit(spec, made) if spec.args.get("by") == "halves" else made.signals["train"].logits.cpu()
    labels = {f"{t:g}": peakd.ptp_labels(logits, made.data.train.labels, t).bincount(minlength=4).tolist()
              for t in sorted((THRESHOLD, *THRESHOLDS))}
    return {"metrics": {}, "extra": common.about(made) | {"labels": labels}}


def _epoch_of_ptp(spec: Spec) -> int:
    """The epoch that PTP kept before the Pea-KD run of this seed, which is made first where it is missing."""
    from kdutils.experiments import run

    twin = replace(spec, method="Pea-KD")
    return run_once(twin, run, Store())["extra"]["ptp_epoch"]


# ------------------------------------------------------------------------------------------------ cross-fitted teachers


def _folds(rows: int):
    """Two halves of train, at random, the same for all."""
    import torch

    return torch.randperm(rows, generator=torch.Generator().manual_seed(0)).chunk(2)


def _fold_teacher(spec: Spec) -> dict:
    """Fine-tune a teacher on one half of train, as the task's teacher was on all of it; its weights are kept."""
    from kdutils import bert, checkpoints, distil

    settings, data = common.settings_of(spec), common.load_data(spec)
    model = common.pretrained(settings, data, spec.seed)
    rows = data.train.take(_folds(len(data.train))[spec.args["fold"]])
    result = distil.train(model, rows, distil.fine_tuning(), settings, seed=spec.seed, epochs=settings.teacher_epochs,
                          lr=settings.teacher_lr, evaluate=distil.evaluator(data.task, data.evaluation))
    checkpoints.save(model, Store().model_path(spec))
    return common.outcome(result, **bert.counts(model))


def _crossfit(spec: Spec, made):
    """Logits [n, classes] for train, each row's from a teacher that was not fine-tuned on it."""
    import torch

    from kdutils import checkpoints, teacher

    train, logits = made.data.train, torch.empty(len(made.data.train), made.task.outputs)
    for fold, other in enumerate(reversed(_folds(len(train)))):
        half = common.make(CHAPTER, spec.profile, spec.task, "fold-teacher", 0, {"fold": fold})
        asked = checkpoints.restore(common.weights(half)).to(made.device)
        logits[other] = teacher.signals(asked, train.take(other), cache=common.cache()).logits
    return logits
