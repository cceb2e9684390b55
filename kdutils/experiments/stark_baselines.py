"""Chapter 02's baselines: objectives for those that train the student once, runs for those that have more stages, and
the trials of what each method leaves open.

Two numbers are a method's own: the temperature of its soft loss, and the weight of its own term. Trials multiply them
by `heat` and `weight`, of which there are as many pairs as STARK has sparsities.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from itertools import product

from kdutils.experiments import common
from kdutils.experiments import stark_teachers as teachers
from kdutils.records import Spec

DEFAULT = (1.0, 1.0)  # heat and weight
OWN = tuple(product((1.0, 0.5, 2.0), (1.0, 0.3, 3.0)))
OWN_REGRESSION = tuple((1.0, weight) for weight in (1.0, 0.1, 0.2, 0.3, 0.5, 2.0, 3.0, 5.0, 10.0))  # it has no softmax
# `weight` multiplies the soft loss of KD, TAKD (in both stages) and DKD (both its parts), PKD's distance of [CLS]
# states, CKD's relations, the rate of MetaKD's teacher, and DynaBERT's distance of hidden states.
TRIED = ("KD", "PKD", "TAKD", "DKD", "CKD", "MetaKD", "DynaBERT")
STUDENT_OF_TRIALS = {"DynaBERT": "pruned"}  # the one that its claim is about; "dropped" elsewhere


def best_own(held: Mapping[tuple[float, float], float]) -> tuple[float, float]:
    """Of the pairs that were tried, by their held-out scores, the best; of equal ones the defaults, or the smallest."""
    return max(sorted(held, key=lambda pair: (pair != DEFAULT, pair)), key=held.__getitem__)


def objective(method: str, made, student, heat: float = 1.0, weight: float = 1.0):
    """What `student` learns from under FT, KD, PKD, CKD or DKD; `made`'s teacher may be a sparse one."""
    from kdutils import baselines, bert, distil, peakd

    told, settings = made.signals["train"], made.settings
    if method == "FT":
        return distil.fine_tuning()
    if method == "KD":
        return distil.stark_kd(told, heat * settings.tau, weight)
    if method == "DKD":
        steps = distil.total_steps(len(made.data.train), settings)
        return baselines.DKD(told, steps, weight * baselines.ALPHA, weight * baselines.GAMMA, heat * baselines.TAU)
    layers, depth = len(student.bert.encoder.layer), len(made.teacher.bert.encoder.layer)
    if method == "PKD":
        return baselines.pkd(told, peakd.pairs(layers, depth), heat * settings.tau, weight * baselines.BETA)
    asked = bert.cast(made.teacher, bert.compute_dtype(settings.precision, made.device)).eval()
    matched = [*peakd.pairs(layers, depth), (layers, depth)]
    return baselines.ckd(asked, matched, made.task.name, heat, weight)


def kd_together(every):
    """KD for a pack (see `packing`): each student from its own teacher, which may be a sparse one."""
    import torch

    from kdutils import distil, losses

    told = torch.stack([one.made.signals["train"].logits for one in every])
    tau = every[0].made.settings.tau
    return distil.Plain(lambda batch, logits, _: losses.stark(
        logits, told[batch["replica"], batch["index"]], batch["labels"], tau))


def takd(spec: Spec, made, heat: float = 1.0, weight: float = 1.0) -> dict:
    """TAKD (Mirzadeh et al., 2020): KD into an assistant half-way in size, then from it into the student that it holds.

    The assistant of a layer-dropped student has layers between its own and the teacher's depth; that of a pruned one
    keeps half-way between its share of units and all, by the same ranking.
    """
    from kdutils import baselines, bert, distil, stark

    settings, depth = made.settings, len(made.teacher.bert.encoder.layer)
    if spec.args["student"] == "pruned":
        scores, shares = teachers.expressiveness(made), (1 - settings.keep, (1 - settings.keep) / 2)
        wanted, own = ([stark.kept(score, share) for score in scores] for share in shares)
        assistant = bert.prune(made.teacher, *own).to(made.device)
    else:
        layers = baselines.between(settings.layers, depth)
        assistant = bert.keep_layers(made.teacher, layers)
    told = distil.stark_kd(made.signals["train"], heat * settings.tau, weight)
    first = common.distil_student(made, assistant, told, spec.seed, evaluate=False)["extra"]
    taught, _ = teachers.taught_by(made, assistant)
    if spec.args["student"] == "pruned":
        student = baselines.inherit(assistant, own, wanted).to(made.device)
    else:
        student = bert.keep_layers(assistant, [layers.index(i) + 1 for i in settings.layers])
    told = distil.stark_kd(taught.signals["train"], heat * settings.tau, weight)
    result = common.distil_student(taught, student, told, spec.seed)
    both = {name: first[name] + result["extra"][name] for name in ("train_seconds", "steps")}
    result["extra"] |= both | common.about(taught)
    return result


def metakd(spec: Spec, made, heat: float = 1.0, weight: float = 1.0) -> dict:
    """MetaKD: the teacher takes a step for every step of the student; held-out rows are its quizzes."""
    from kdutils import distil
    from kdutils.experiments import stark
    from kdutils.metakd import TEACHER_RATE, MetaKD

    made, settings = _in_float32(made), made.settings
    student, teacher = stark.initial(spec, made).to(made.device), copy.deepcopy(made.teacher)
    learner = MetaKD(student, teacher, made.data.held, settings.batch_size, settings.lr,
                     heat * settings.tau, spec.seed, weight * TEACHER_RATE)
    result = common.distil_student(made, student, learner, spec.seed)
    after = distil.evaluator(made.task, made.data.evaluation)(teacher)
    result["extra"] |= {"teacher": after, "dtype": "float32"}
    return result


def dynabert(spec: Spec, made, heat: float = 1.0, weight: float = 1.0) -> dict:
    """DynaBERT: all widths at once from the rewired teacher, then all depths at once at the student's own width.

    The student of kind `dropped` is the network of full width and the layers `settings.layers`, that of kind `pruned`
    the one of width `settings.keep` and full depth.
    """
    from kdutils import baselines, bert, distil, dynabert

    made, settings = _in_float32(made), made.settings
    pruned, every = spec.args["student"] == "pruned", range(1, len(made.teacher.bert.encoder.layer) + 1)
    width = settings.keep if pruned else 1.0
    wide = dynabert.rewire(made.teacher, *teachers.expressiveness(made)).to(made.device)
    widths = sorted({*dynabert.WIDTHS, width}, reverse=True)
    views = [(dynabert.narrow(wide, w), every) for w in widths]
    stage = dynabert.Elastic(views, made.teacher, weight * dynabert.HIDDEN[0], heat)
    first = distil.train(wide, made.data.train, stage, settings, seed=spec.seed)
    deep = dynabert.cut(wide, width)
    own = every if pruned else settings.layers
    depths = dict.fromkeys([tuple(every), baselines.between(settings.layers, len(every)), settings.layers])
    views = [(dynabert.shallow(deep, layers), layers) for layers in depths]
    stage = dynabert.Elastic(views, copy.deepcopy(deep), weight * dynabert.HIDDEN[1], heat)
    judge = distil.evaluator(made.task, made.data.evaluation, made.signals)
    result = distil.train(deep, made.data.train, stage, settings, seed=spec.seed,
                          evaluate=lambda model, last: judge(dynabert.shallow(model, own), last))
    result = replace(result, seconds=first.seconds + result.seconds, steps=first.steps + result.steps)
    return common.outcome(result, widths=widths, depths=[len(d) for d in depths], dtype="float32",
                          student_parameters=bert.counts(dynabert.shallow(deep, own))["encoder"])


def _in_float32(made):
    """The bench for an objective that holds the trained model itself: in bf16 a copy computes."""
    return replace(made, settings=replace(made.settings, precision="fp32"))


STAGED = {"TAKD": takd, "MetaKD": metakd, "DynaBERT": dynabert}
