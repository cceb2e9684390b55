"""What profile paper plans, in rows that go through a training: what a step takes, times that, is what the plan takes.

Counted: every training of every planned run, PTP's epochs and KSM's episodes without early stops, augmented rows, and
the teacher's pass over train for each sparse teacher. Not counted: evaluations, scores and rewards (passes over dev or
held-out rows, about a tenth in all), augmentation itself, the teachers that a run makes for itself (that of chapters 05
and 06, cross-fitted ones), and the baselines TAKD, MetaKD and DynaBERT, which also train larger networks. What chapter
02 plans once its grid has chosen is not in the plan yet.
"""

from __future__ import annotations

from kdutils import profiles
from kdutils.experiments import ksm, peakd, probes
from kdutils.experiments.stark_baselines import STAGED
from kdutils.records import Spec

TRAIN_ROWS = {"mrpc": 3668, "rte": 2490, "stsb": 5749, "sst2": 67349, "qnli": 104743, "qqp": 363846, "mnli": 392702}
PASS = "the teacher's pass"


def passes(spec: Spec) -> dict[str, float]:
    """How often a planned run goes through its task's training rows, by the name of a piece's training."""
    epochs = spec.args.get("epochs", spec.settings["epochs"])
    method = spec.method.removeprefix("tune-").removeprefix("tuned-")
    if spec.chapter == "01_pilot":
        if method == "finetune":
            return {"fine-tuning": spec.settings["teacher_epochs"]}
        return {"student": epochs} if method == "distil_from_sparse" else {}  # the others only measure
    if spec.chapter in ("02_stark", "03_stark_auto"):
        once = {PASS: 1.0} if method.startswith("STARK") else {}
        return {} if method in STAGED else once | {"student": epochs}
    if spec.chapter == "04_peakd":
        ptp = {"PTP": profiles.PTP_EPOCHS * (1 - profiles.PTP_INNER)}
        before = ptp if method in (*peakd.PTP, "extra-finetune") else {}
        return before | {"Patient KD" if method == "PatientKD" else "stacked student": epochs}
    if spec.chapter == "06_ksm":
        episodes = spec.args["episodes"] if probes.base(spec) in ksm.KSM else 0
        return {"stage one": episodes * epochs, "student": epochs * (1 + spec.args.get("copies", 0))}
    return {"student": epochs}


def planned(specs: list[Spec]) -> dict[str, tuple[int, float]]:
    """Of a chapter's plan: how many runs have each training, and how many rows go through it."""
    found: dict[str, tuple[int, float]] = {}
    for spec in specs:
        rows = TRAIN_ROWS[spec.task] * (1 - spec.settings["held"])
        for name, often in passes(spec).items():
            runs, total = found.get(name, (0, 0.0))
            found[name] = runs + (often > 0), total + often * rows
    return found
