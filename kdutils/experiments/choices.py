"""What all chapters share is settled here, once per task, on held-out rows of train.

Which teacher layers a student keeps and at which rate it learns is chosen: first the layers at the default rate, then
the rate with the layers that won; `profiles.PROFILES` holds the winners. The epochs of students, and the rate and
epochs of the teacher, were set beforehand and are put to the test: what was set stands unless a trial beats the mean of
the seeds that have it by more than `SPREADS` of their standard deviations (see `settled`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import mean, stdev

from kdutils import profiles
from kdutils.experiments import common
from kdutils.records import Spec, look_up

CHAPTER = "00_choices"
SEED = 100  # no comparison of the book uses it
LAYERS = ((1, 3, 6), (2, 4, 6), (1, 2, 3))
RATES = (5e-5, 1e-4, 2e-4, 4e-4)
EPOCHS = (2, 3, 5)
TEACHER_RATES, TEACHER_EPOCHS = (2e-5, 5e-5, 1e-4), (2, 4, 6)
SPREADS = 2.0


def plan(profile: str, task: str) -> list[Spec]:
    trials = plan_choice(profile, task)
    if not chosen(trials):
        return trials
    return trials + [spec for name in SET for spec in trials_of(name, profile, task)]


def plan_choice(profile: str, task: str) -> list[Spec]:
    """The runs between which layers and rate are chosen; those of the rate once those of the layers are there."""
    if profile not in ("smoke", "mini"):
        return []
    layers = LAYERS if profile == "mini" else ((1, 4), (1, 2))
    default = profiles.Settings().lr
    first = [_spec(profile, task, layers=kept, lr=default) for kept in layers]
    best = chosen(first)
    return first + [_spec(profile, task, layers=tuple(best["layers"]), lr=lr) for lr in RATES if best and lr != default]


def chosen(specs: list[Spec]) -> dict:
    """The settings of the run with the best held-out verdict metric; empty while any of them is missing."""
    records, missing = look_up(specs)
    return common.best(records)["settings"] if records and not missing else {}


def _spec(profile: str, task: str, **settings) -> Spec:
    return common.make(CHAPTER, profile, task, "KD", SEED, **settings)


# ---------------------------------------------------------------------------------------- what was set, put to the test

SET = {"epochs": EPOCHS, "teacher_lr": TEACHER_RATES, "teacher_epochs": TEACHER_EPOCHS}


@dataclass(frozen=True)
class Settled:
    """What was `planned` beforehand and its `trials` {other value: held-out metric}, beside the `mean` and the `spread`
    (standard deviation) of that metric over the `seeds` that have what was planned."""

    planned: float
    trials: dict[float, float]
    mean: float
    spread: float
    seeds: int

    @property
    def stands(self) -> bool:
        return max(self.trials.values()) <= self.mean + SPREADS * self.spread


def trials_of(name: str, profile: str, task: str) -> list[Spec]:
    """The trials of a setting's other values, one seed each."""
    usual = profiles.settings(profile, task)
    others = [value for value in SET[name] if value != getattr(usual, name)]
    if name == "epochs":
        return [_spec(profile, task, epochs=value) for value in others]
    changed = [replace(usual, **{name: value}) for value in others if profile == "mini"]
    return [replace(common.teacher_spec(profile, task, some, SEED), chapter=CHAPTER) for some in changed]


def settled(name: str, profile: str, task: str) -> Settled | None:
    """How a setting compares with its trials; None while one of them, or a seed with what was planned, is missing."""
    usual, seeds = profiles.settings(profile, task), range(profiles.profile(profile).seeds)
    with_it = [
        common.make("01_pilot", profile, task, "distil_from_sparse", seed, {"amount": 0.0})  # of the dense teacher
        if name == "epochs" else common.teacher_spec(profile, task, usual, seed) for seed in seeds
    ]
    specs = trials_of(name, profile, task)
    tried, missing = look_up(specs)
    own, more = look_up(with_it)
    if not tried or missing or more:
        return None
    scores = [common.held(record) for record in own]
    trials = {spec.settings[name]: common.held(record) for spec, record in zip(specs, tried, strict=True)}
    return Settled(getattr(usual, name), trials, mean(scores), stdev(scores), len(scores))


# ---------------------------------------------------------------------------------------------------------------- runs


def run(spec: Spec) -> dict:
    from kdutils import bert, distil
    from kdutils.experiments import pilot

    if spec.method == "finetune":
        return pilot.finetuned(spec)[1]
    made = common.bench(spec)
    student = bert.keep_layers(made.teacher, made.settings.layers)
    outcome = common.distil_student(made, student, distil.stark_kd(made.signals["train"], made.settings.tau), spec.seed)
    return outcome | {"extra": outcome["extra"] | {"teacher_weights": made.weights}}
