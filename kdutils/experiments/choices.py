"""Which teacher layers a student keeps and at which rate it learns: chosen once per task on held-out rows of train.

First the layers at the default rate, then the rate with the layers that won. `profiles.PROFILES` holds what was chosen.
Epochs are a budget that every method shares, not a choice: the last runs say what more or fewer of them would reach.
"""

from __future__ import annotations

from kdutils import profiles
from kdutils.experiments import common
from kdutils.records import Spec, Store

SEED = 100  # no comparison of the book uses it
LAYERS = ((1, 3, 6), (2, 4, 6), (1, 2, 3))
RATES = (5e-5, 1e-4, 2e-4, 4e-4)
EPOCHS = (2, 3, 5)


def plan(profile: str, task: str) -> list[Spec]:
    trials = plan_choice(profile, task)
    best = chosen(trials)
    if not best:
        return trials
    return trials + [_spec(profile, task, layers=tuple(best["layers"]), lr=best["lr"], epochs=epochs)
                     for epochs in EPOCHS if epochs != best["epochs"]]


def plan_choice(profile: str, task: str) -> list[Spec]:
    """The runs between which layers and rate are chosen; those of the rate once those of the layers are there."""
    if profile not in ("smoke", "mini"):
        return []
    layers = LAYERS if profile == "mini" else ((1, 4), (1, 2))
    default = profiles.Settings().lr
    first = [_spec(profile, task, layers=kept, lr=default) for kept in layers]
    best = chosen(first)
    return first + [_spec(profile, task, layers=tuple(best["layers"]), lr=lr) for lr in RATES if best and lr != default]


def chosen(specs: list[Spec], store: Store | None = None) -> dict:
    """The settings of the run with the best held-out verdict metric; empty while any of them is missing."""
    from kdutils import tasks

    store = store or Store()
    records = [store.get(s) for s in specs]
    if not specs or not all(records):
        return {}
    metric = tasks.get(specs[0].task).verdict_metric
    return max(records, key=lambda r: r["metrics"]["held"][metric])["spec"]["settings"]


def _spec(profile: str, task: str, **settings) -> Spec:
    return common.make("00_choices", profile, task, "KD", SEED, **settings)


def run(spec: Spec) -> dict:
    from kdutils import bert, distil

    made = common.bench(spec)
    student = bert.keep_layers(made.teacher, made.settings.layers)
    return common.distil_student(made, student, distil.stark_kd(made.signals["train"], made.settings.tau), spec.seed)
