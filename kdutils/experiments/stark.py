"""Chapter 02, STARK: the sparsity grid, its controls and ablations, and the baselines.

The run of a base method (KD, PKD, CKD) without STARK is its trial distillation as well: it leaves its logits on the
held-out and dev rows for those who score the teacher. A STARK run of the same seed starts from the same student and
goes through the same batches and dropout, with a sparse teacher.

`args`: `student` (dropped, pruned, ...); of STARK also `base`, `sparsity`, `scores` (knowledgeable, expressiveness,
friendliness, random), `protocol` (clean: scores on held-out rows; paper: on dev) and `lam` where it is not 0.5.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from kdutils import profiles
from kdutils.experiments import common
from kdutils.records import Spec, Store

CHAPTER = "02_stark"
GRID = tuple(round(0.1 * i, 1) for i in range(1, 10))
COARSE = (0.1, 0.3, 0.5, 0.7)
SMALL = {"smoke": (0.3, 0.6), "demo": (0.2, 0.4, 0.6)}  # the grid of the profiles that are no experiment
LAMBDAS = {"expressiveness": 1.0, "friendliness": 0.0}
SPLITS = {"clean": "held", "paper": "dev"}  # what each protocol scores the teacher on
SCORE_BATCH = 32


# --------------------------------------------------------------------------------------------------------------- plan


def one(profile: str, task: str, method: str, seed: int, student: str = "dropped", **args) -> Spec:
    """The spec of one run."""
    return common.make(CHAPTER, profile, task, method, seed, {"student": student} | args)


def sparse(profile: str, task: str, seed: int, sparsity: float, student: str = "dropped", scores: str = "knowledgeable",
           base: str = "KD", protocol: str = "clean", **args) -> Spec:
    """The spec of one STARK run."""
    args = {"base": base, "sparsity": sparsity, "scores": scores, "protocol": protocol} | args
    return one(profile, task, "STARK", seed, student, **args)


def plan(profile: str, task: str) -> list[Spec]:
    return list(dict.fromkeys(_plan(profile, task)))


def _plan(profile: str, task: str) -> Iterator[Spec]:
    seeds = range(profiles.profile(profile).seeds)
    grid = SMALL.get(profile, GRID)
    for student in ("dropped", "pruned"):
        yield from grid_of(profile, task, seeds, grid, student)


def grid_of(profile: str, task: str, seeds, grid: tuple[float, ...], student: str) -> Iterator[Spec]:
    """KD, STARK over the grid and random scores over it, whole seeds at a time: half a grid chooses nothing."""
    for seed in seeds:
        yield one(profile, task, "KD", seed, student)
        yield from (sparse(profile, task, seed, s, student) for s in grid)
    first = [s for s in COARSE if s in grid] or grid[:1]
    for part in (first, grid):
        yield from (sparse(profile, task, seed, s, student, "random") for seed in seeds for s in part)


# --------------------------------------------------------------------------------------------------------------- runs


def run(spec: Spec) -> dict:
    """Sparsify the teacher where the method does, distil the student, and say what each stage took."""
    made = common.bench(spec)
    extra: dict = {}
    student = initial(spec, made)
    if spec.method == "STARK":
        made, extra = taught_by(made, *sparse_teacher(spec, made))
    result = common.distil_student(made, student, objective(spec, made), spec.seed)
    if spec.method in BASES:
        _leave_logits(spec, made, student)
    result["extra"] |= extra
    return result


def objective(spec: Spec, made):
    """What the spec's student is trained on."""
    from kdutils import distil

    return distil.stark_kd(made.signals["train"], made.settings.tau)


BASES = ("KD",)


def initial(spec: Spec, made):
    """The student's start, from the fine-tuned teacher, the same for every method and seed: `dropped` keeps its layers
    `settings.layers`, `pruned` the share `settings.keep` of heads and of neurons that are most expressive on held-out
    rows."""
    from kdutils import bert, stark

    student = spec.args["student"]
    if student == "dropped":
        return bert.keep_layers(made.teacher, made.settings.layers)
    if student == "pruned":
        return stark.sparsify(made.teacher, *expressiveness(made), 1 - made.settings.keep)
    raise ValueError(f"student: got {student!r}; allowed: dropped, pruned")


def remembered(kind: str, about: str, make) -> dict:
    """The tensors that `make()` returns, by name, kept on disk under `kind` and the text `about` that decides them."""
    import hashlib
    import os

    from safetensors.torch import load_file, save_file

    path = Store().runs / "cache" / f"{kind}-{hashlib.sha256(about.encode()).hexdigest()[:24]}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        save_file({name: value.contiguous().cpu() for name, value in make().items()}, partial)
        os.replace(partial, path)
    return load_file(path)


def expressiveness(made):
    """P of the teacher's heads and neurons on held-out rows, which initialises the pruned student."""
    from kdutils import bert, stark

    held = made.data.held

    def make():
        batches = held.batches(SCORE_BATCH, device=made.device)
        return dict(zip(("heads", "neurons"), stark.expressiveness(made.teacher, batches), strict=True))

    found = remembered("expressiveness", f"{bert.weights_hash(made.teacher)} {held.fingerprint()}", make)
    return found["heads"], found["neurons"]


def trial(spec: Spec) -> Spec:
    """The trial distillation of a STARK run: its base method, student and seed, with the dense teacher."""
    args = {"student": spec.args["student"]}
    return Spec(spec.chapter, spec.task, spec.args["base"], spec.profile, spec.seed, args, spec.settings)


def _leave_logits(spec: Spec, made, student) -> None:
    """Keep what others need of a trial student: its logits on the rows that score a teacher."""
    import os

    from safetensors.torch import save_file

    from kdutils import teacher

    path = Store().model_path(spec)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({name: teacher.ask(student, made.data.evaluation[name]).logits for name in SPLITS.values()}, partial)
    os.replace(partial, path)


def scores(spec: Spec, made):
    """`stark.Scores` of the dense teacher against the spec's trial student, on the rows of its protocol."""
    from kdutils import bert, stark

    split = SPLITS[spec.args["protocol"]]
    rows = made.data.evaluation[split]

    def make():
        logits = trial_logits(spec, split).to(made.device)
        batches = rows.batches(SCORE_BATCH, device=made.device)
        return vars(stark.score(made.teacher, lambda batch: logits[batch["index"]], batches, made.settings.tau))

    about = f"{trial(spec).key} {bert.weights_hash(made.teacher)} {rows.fingerprint()}"
    return stark.Scores(**remembered("scores", about, make))


def trial_logits(spec: Spec, split: str):
    from safetensors.torch import load_file

    return load_file(common.weights(trial(spec)))[split]


def sparse_teacher(spec: Spec, made) -> tuple:
    """The sparse teacher of a STARK run and what is recorded of it."""
    from kdutils import stark

    started, args = time.perf_counter(), spec.args
    if args["scores"] == "random":
        ranks = stark.random_scores(made.teacher, spec.seed)
    elif args["scores"] in ("knowledgeable", *LAMBDAS):
        ranks = scores(spec, made).knowledgeable(LAMBDAS.get(args["scores"], args.get("lam", 0.5)))
    else:
        raise ValueError(f"scores: got {args['scores']!r}; allowed: knowledgeable, {', '.join(LAMBDAS)}, random")
    pruned = stark.sparsify(made.teacher, *ranks, args["sparsity"])
    return pruned, where(*ranks, args["sparsity"]) | {"score_seconds": time.perf_counter() - started}


def where(heads, neurons, sparsity: float) -> dict:
    """Which heads stay (one text of 0 and 1 a layer) and how many neurons do in each layer."""
    from kdutils import stark

    stay = stark.kept(heads, sparsity).int().tolist()
    return {"kept_heads": ["".join(map(str, row)) for row in stay],
            "kept_neurons": stark.kept(neurons, sparsity).sum(1).tolist()}


def taught_by(made, teacher, extra: dict, states: bool = False) -> tuple:
    """The bench with another teacher and its signals, and `extra` with that teacher's size and metrics."""
    from kdutils import bert, tasks
    from kdutils.teacher import signals

    started, cache = time.perf_counter(), Store().runs / "cache"
    splits = {"train": made.data.train} | made.data.evaluation
    asked = {name: signals(teacher, rows, states, cache) for name, rows in splits.items()}
    metrics = {name: tasks.score(made.task, asked[name].logits.numpy(), rows.labels.numpy())
               for name, rows in made.data.evaluation.items()}
    extra = extra | {"teacher": metrics, "teacher_parameters": bert.counts(teacher)["encoder"],
                     "teacher_seconds": time.perf_counter() - started}
    there = {name: found.to(made.device) for name, found in asked.items()}
    return replace(made, teacher=teacher, signals=there), extra
