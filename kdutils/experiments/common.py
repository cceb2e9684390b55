"""What the experiments share: specs, a task's workbench (data, teacher, signals), students, one distillation."""

from __future__ import annotations

import contextlib
import functools
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kdutils import processes, profiles, tasks
from kdutils.records import Record, Spec, Store

TEACHER_SEED = 0  # one teacher a task, as in the papers; chapter 01 fine-tunes further seeds and shows their spread


def make(chapter: str, profile: str, task: str, method: str, seed: int, args: dict | None = None, **changes) -> Spec:
    """A spec with the profile expanded; `changes` override single settings."""
    settings = profiles.settings(profile, task, **changes)
    return Spec(chapter, task, method, profile, seed, args or {}, asdict(settings))


def settings_of(spec: Spec) -> profiles.Settings:
    """The expanded profile of a spec, whose lists stood in JSON."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.settings.items()}
    return profiles.Settings(**values)


def teacher_spec(profile: str, task: str, settings: profiles.Settings, seed: int = TEACHER_SEED,
                 layers: int | None = None) -> Spec:
    """The fine-tuning run, of chapter 01, that makes a task's teacher. What only students read is left at its default,
    so that a change of it does not ask for a new teacher."""
    args = {"layers": layers or settings.depth}
    return Spec("01_pilot", task, "finetune", profile, seed, args, asdict(_of_teacher(settings)))


def _of_teacher(settings: profiles.Settings) -> profiles.Settings:
    """The settings with the defaults for what only students read."""
    default = profiles.Settings()
    return replace(settings, **{k: getattr(default, k) for k in ("lr", "epochs", "layers", "keep", "tau")})


@dataclass(frozen=True)
class Bench:
    """A task set up: its settings, data, fine-tuned teacher (eval mode) and what that teacher says (see `told`).

    `weights` is the hash of the fine-tuned teacher. It stays where a run puts another teacher made from that one in its
    place: runs with the same hash began with the same teacher."""

    settings: profiles.Settings
    data: object
    teacher: object
    signals: dict
    device: str
    weights: str

    @property
    def task(self) -> tasks.Task:
        return self.data.task


def pretrained(settings: profiles.Settings, data, seed: int):
    """The pre-trained encoder with a fresh head, its embeddings cut to the task's vocabulary."""
    from kdutils import bert

    return bert.trim(bert.load(settings.model, data.task.outputs, seed), data.vocabulary)


def weights(spec: Spec) -> Path:
    """The file that `run(spec)` leaves at `Store().model_path(spec)` for the runs that build on it, made where it is
    not there: with the run, or again where only its record is (weights are never published)."""
    from kdutils.experiments import run
    from kdutils.records import run_once

    store = Store()
    path = store.model_path(spec)
    if processes.agreed(not path.exists() and store.get(spec) is None):
        run_once(spec, run, store)
    if processes.agreed(not path.exists()):  # processes launched together train together: only the first has the lease
        with store.lease(spec, wait=True) if processes.first() else contextlib.nullcontext():
            if processes.agreed(not path.exists()):
                run(spec)
    return path


@functools.lru_cache(maxsize=4)
def _bench(profile: str, task: str, settings: profiles.Settings, states: bool) -> Bench:
    from kdutils import checkpoints, data, distil

    path = weights(teacher_spec(profile, task, settings))
    made = checkpoints.restore(path).to(distil.best_device())
    hashed = checkpoints.hash_of(made)
    _compare(teacher_spec(profile, task, settings), hashed)
    loaded, device = data.load(task, _data_settings(settings)), str(distil.best_device())
    return Bench(settings, loaded, made, told(made, loaded, device, states, cache()), device, hashed)


def cache() -> Path:
    """The folder of what would be asked of a teacher, or computed from it, again."""
    return Store().runs / "cache"


def told(teacher, data, device: str, states: bool = False, cache: Path | None = None) -> dict:
    """The `Signals` of `teacher` on every split ("train", "held", "dev" and, where there are, "mismatched" and "test"),
    on `device`; with `states` those of train, which alone are trained on, have the [CLS] states."""
    from kdutils.teacher import signals

    splits = {"train": data.train} | data.evaluation
    return {k: signals(teacher, v, states and k == "train", cache).to(device) for k, v in splits.items()}


def _compare(spec: Spec, hashed: str) -> None:
    """Warn where the runs in the store began with other weights of this teacher: weights are never published, and a
    machine or a version of the code that adds in another order makes its own."""
    store = Store()
    told = set()
    for record in (record for chapter in store.chapters() for record in store.records(chapter)):
        of, weights = record["spec"], record["extra"].get("teacher_weights")
        if weights and (of["profile"], of["task"]) == (spec.profile, spec.task):
            known = {name: value for name, value in of["settings"].items() if name in spec.settings}
            if teacher_spec(spec.profile, spec.task, settings_of(replace(spec, settings=known))).key == spec.key:
                told.add(weights)
    if told - {hashed}:
        begun = ", ".join(sorted(told))
        warnings.warn(f"teacher of {spec.task}: got weights {hashed}, the runs in the store began with {begun}; seeds "
                      "pair only within one teacher (see book/reproduce.md)", stacklevel=3)


@functools.lru_cache(maxsize=8)
def _data_settings(settings: profiles.Settings) -> profiles.Settings:
    """Only what decides the data, so that runs of different rates share one load."""
    names = ("model", "rows", "held", "max_length")
    return profiles.Settings(**{k: getattr(settings, k) for k in names})


def bench(spec: Spec, states: bool = False) -> Bench:
    """The workbench of a spec's task; with `states` the teacher's [CLS] states on train are there as well. The teacher
    is trained first where it is not there yet."""
    settings = settings_of(spec)
    return replace(_bench(spec.profile, spec.task, _of_teacher(settings), states), settings=settings)


def load_data(spec: Spec):
    """The spec's data without a teacher."""
    from kdutils import data

    return data.load(spec.task, _data_settings(settings_of(spec)))


def held(record: Record) -> float:
    """The verdict's metric on held-out rows, by which every choice is made."""
    return record["metrics"]["held"][tasks.get(record["spec"]["task"]).verdict_metric]


def best(records: list[Record]) -> dict:
    """The spec of the record that is best on held-out rows; of equal ones the first."""
    return max(records, key=held)["spec"]


def majority(data) -> dict[str, dict]:
    """What a constant answer scores on every evaluation set."""
    return {name: tasks.majority(data.task, rows.labels.numpy()) for name, rows in data.evaluation.items()}


def about(made: Bench) -> dict:
    """What is recorded of the bench's teacher: its metrics on every evaluation set, its size, the hash of the
    fine-tuned one (see `Bench`), and for comparison the metrics of a constant answer."""
    from kdutils import bert

    told = {name: tasks.score(made.task, made.signals[name].logits.cpu().numpy(), rows.labels.numpy())
            for name, rows in made.data.evaluation.items()}
    size = bert.counts(made.teacher)["encoder"]
    return {"teacher": told, "teacher_parameters": size, "teacher_weights": made.weights,
            "majority": majority(made.data)}


def distil_student(made: Bench, student, objective, seed: int, evaluate: bool = True, **options):
    """Train `student` in place on the bench's train split; returns the record's outcome dict (see kdutils.records).

    Metrics of the last step are under "metrics", the best-dev epoch's under "best".
    """
    from kdutils import bert, distil

    judge = distil.evaluator(made.task, made.data.evaluation, made.signals) if evaluate else None
    result = distil.train(student, made.data.train, objective, made.settings, seed=seed, evaluate=judge,
                          progress=True, **options)
    return outcome(result, student_parameters=bert.counts(student)["encoder"])


def outcome(result, **extra) -> dict:
    """A record's outcome from what `distil.train` returned. Where nothing was trained, the dtype is that of
    `teacher.ask`, which the metrics come from."""
    import torch

    from kdutils import bert, distil, provenance

    dtype = result.dtype or str(bert.compute_dtype("auto", distil.best_device())).removeprefix("torch.")
    return {"metrics": result.epochs[-1] if result.epochs else {}, "best": result.best, "losses": result.losses,
            "curve": result.curve,
            "extra": {"train_seconds": result.seconds, "steps": result.steps, "device": provenance.device(),
                      "threads": torch.get_num_threads(), "dtype": dtype} | extra}
