"""Chapters 02 and 03: what is kept of trial students, the scores, sparse teachers and what they say.

Torch is imported inside the functions: the plans, which name the constants here, need none.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kdutils import processes
from kdutils.experiments import common
from kdutils.records import RECIPE, Spec, Store

CHAPTER = "02_stark"  # of the trial distillations, for chapter 03 too
LAMBDAS = {"expressiveness": 1.0, "friendliness": 0.0}
SPLITS = {"clean": "held", "paper": "dev"}  # what each protocol scores the teacher on
SCORE_BATCH = 32
SHORT = {"smoke": {"epochs": 1}}  # changes of settings, so that a chapter with so many methods stays quick


def timed(make: Callable) -> tuple:
    """What `make()` returns, and the seconds it took, to the end of what it left running on a GPU."""
    import torch

    started = time.perf_counter()
    made = make()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return made, time.perf_counter() - started


def remembered(kind: str, about: str, prepare: Callable[[], tuple], make: Callable) -> tuple[dict, float | None]:
    """The tensors that `make(*prepare())` returns, by name, kept on disk under `kind`, the recipe and the text `about`
    that decides them, and the seconds that `make` took (`prepare` may have to train a trial student); None for those of
    an older file that does not say."""
    import torch

    from kdutils import checkpoints

    key = hashlib.sha256(f"{RECIPE} {about}".encode()).hexdigest()[:24]
    path = common.cache() / f"{kind}-{key}.safetensors"
    if processes.agreed(not path.exists()):
        ready = prepare()
        made, took = timed(lambda: make(*ready))
        if processes.first():
            checkpoints.write(made | {"seconds": torch.tensor(took, dtype=torch.float64)}, path)
        processes.agreed(None)  # the others wait for the file: their own sums may differ in the last digit
    found, _ = checkpoints.read(path)
    took = found.pop("seconds", None)
    return found, None if took is None else float(took)


def expressiveness(made):
    """P of the teacher's heads and neurons on held-out rows, which initialises the pruned student."""
    from kdutils import checkpoints, stark

    held = made.data.held

    def make(batches):
        return dict(zip(("heads", "neurons"), stark.expressiveness(made.teacher, batches), strict=True))

    about = f"{checkpoints.hash_of(made.teacher)} {held.fingerprint()}"
    found, _ = remembered("expressiveness", about, lambda: (held.batches(SCORE_BATCH, device=made.device),), make)
    return found["heads"], found["neurons"]


def trial(spec: Spec) -> Spec:
    """The trial distillation of a STARK run: its base method, student and seed, with the dense teacher."""
    base, args = spec.args.get("base", "KD"), {"student": spec.args["student"]}
    return Spec(CHAPTER, spec.task, base, spec.profile, spec.seed, args, spec.settings)


def leave_logits(spec: Spec, made, student) -> None:
    """Keep what others need of a trial student: its logits on the rows that score a teacher."""
    from kdutils import checkpoints, teacher

    rows = made.data.evaluation
    said = {name: teacher.ask(student, rows[name]).logits for name in SPLITS.values()}
    checkpoints.write(said, Store().model_path(spec))


def scores(spec: Spec, made) -> tuple:
    """`stark.Scores` of the dense teacher against the spec's trial student, on the rows of its protocol, and the
    seconds that scoring took, perhaps in an earlier run (see `remembered`)."""
    from kdutils import checkpoints, stark

    def make(student, batches):
        return vars(stark.score(made.teacher, student, batches, made.settings.tau))

    rows = made.data.evaluation[SPLITS[spec.args.get("protocol", "clean")]]
    about = f"{trial(spec).key} {checkpoints.hash_of(made.teacher)} {rows.fingerprint()}"
    found, took = remembered("scores", about, lambda: _scored_on(spec, made), make)
    return stark.Scores(**found), took


def _scored_on(spec: Spec, made) -> tuple:
    """The trial student, by its kept logits, and the batches that the spec's protocol scores the teacher on."""
    from kdutils import checkpoints

    split = SPLITS[spec.args.get("protocol", "clean")]
    logits = checkpoints.read(common.weights(trial(spec)))[0][split].to(made.device)
    batches = made.data.evaluation[split].batches(SCORE_BATCH, device=made.device)
    return lambda batch: logits[batch["index"]], batches


def sparse_teacher(spec: Spec, made) -> tuple:
    """The sparse teacher of a STARK run and what is recorded of it. `score_seconds` are those that scoring took, in
    whichever run of the seed it was done: looking scores up takes none. None where that is not known."""
    import torch

    from kdutils import stark

    args = spec.args
    kind, share, lam = args["scores"], args["sparsity"], args.get("lam", 0.5)
    if spec.method == "STARK-unstructured":
        if kind != "knowledgeable":
            raise ValueError(f"scores: got {kind!r} for STARK-unstructured; allowed: knowledgeable")
        student, batches = _scored_on(spec, made)
        weights, took = timed(lambda: stark.score_weights(made.teacher, student, batches, made.settings.tau, lam))
        pruned = stark.sparsify_weights(made.teacher, weights, share)
        layers = [torch.cat([w.flatten() for w in layer]) for layer in stark.weight_matrices(pruned)]
        return pruned, {"zeros": [float((layer == 0).float().mean()) for layer in layers], "score_seconds": took}
    if kind not in ("knowledgeable", *LAMBDAS, "random"):
        raise ValueError(f"scores: got {kind!r}; allowed: knowledgeable, {', '.join(LAMBDAS)}, random")
    if kind == "random":
        ranks, took = timed(lambda: stark.random_scores(made.teacher, spec.seed))
    else:
        found, took = scores(spec, made)
        ranks = found.knowledgeable(LAMBDAS.get(kind, lam))
    pruned = stark.sparsify(made.teacher, *ranks, share)
    return pruned, where(*ranks, (share, share)) | {"score_seconds": took}


def sparsified(spec: Spec, made, states: bool = False) -> tuple:
    """The bench with the sparse teacher of a STARK run in the place of its own, and what is recorded of it."""
    teacher, extra = sparse_teacher(spec, made)
    made, seconds = taught_by(made, teacher, states)
    return made, extra | seconds


def where(heads, neurons, shares: tuple[float, float]) -> dict:
    """Which heads stay (one text of 0 and 1 a layer) and how many neurons do in each layer, their `shares` gone."""
    from kdutils import stark

    stay = stark.kept(heads, shares[0]).int().tolist()
    return {"kept_heads": ["".join(map(str, row)) for row in stay],
            "kept_neurons": stark.kept(neurons, shares[1]).sum(1).tolist()}


def taught_by(made, teacher, states: bool = False, cache: Path | None = None) -> tuple:
    """The bench with another teacher and its signals, and the seconds of asking it. They are kept in the folder `cache`
    where it is given: most such teachers are never asked again."""
    started = time.perf_counter()
    asked = common.told(teacher, made.data, made.device, states, cache)
    return replace(made, teacher=teacher, signals=asked), {"teacher_seconds": time.perf_counter() - started}
