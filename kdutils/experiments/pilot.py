"""Chapter 01, STARK's pilot study: size, random sparsification and confidence; it also makes every task's teacher.

    finetune             layers        one fine-tuned model; the full-depth one of seed 0 is the task's teacher
    random_unstructured  amount        that teacher with a random share of every encoder matrix's weights zeroed
    random_structured    amount        that teacher without a random share of its heads and of its neurons
    distil_from_sparse   amount        a student of that teacher after random_unstructured

The seed of the second and third is the mask's; the last one's is the student's and its teacher's mask's. Amount 0 is
the dense teacher, under every seed, so that comparisons pair.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from kdutils import profiles
from kdutils.experiments import common
from kdutils.records import Spec, Store

CHAPTER = "01_pilot"
UNSTRUCTURED = (0.0, 0.1, 0.05, 0.2, 0.025, 0.075, 0.15, 0.3)  # in order of importance
STRUCTURED = (0.3, 0.5, 0.1, 0.7, 0.2, 0.4, 0.6)
TAUGHT = (0.0, 0.05, 0.1, 0.025)
QUICK = {"smoke": 3, "demo": 2}  # small profiles, which take so many of each list above
FULL = ("mrpc", "sst2", "stsb", "rte")  # mini's tasks that take all of them; the film reviews take three
DEPTHS = {4: (2,), 6: (3, 1, 2, 4)}  # of the models whose own layers make the smaller sizes
SIZES = {  # the paper profile's other sizes: name -> hub id, layers
    "medium": ("google/bert_uncased_L-8_H-512_A-8", 8),
    "small": ("google/bert_uncased_L-4_H-512_A-8", 4),
    "mini": ("google/bert_uncased_L-4_H-256_A-4", 4),
    "large": ("google-bert/bert-large-uncased", 24),
}


def plan(profile: str, task: str) -> list[Spec]:
    """The teacher, then in two rounds (what the claims need, and the rest): masks on it, smaller models and further
    fine-tuning seeds, students of sparse teachers, units removed."""
    chosen, settings = profiles.profile(profile), profiles.settings(profile, task)
    small = profile in QUICK
    few = QUICK.get(profile, 3 if profile == "mini" and task not in FULL else None)
    make = functools.partial(common.make, CHAPTER, profile, task)
    depths, seeds, masks = DEPTHS.get(settings.depth, ()), range(chosen.seeds), range(chosen.headline_seeds)

    def over(method, amounts, seeds):
        return [make(method, seed, {"amount": a}) for a in amounts for seed in seeds]

    def models(seeds, *layers):
        return [common.teacher_spec(profile, task, settings, seed, *layers) for seed in seeds]

    def part(amounts: slice, taught: slice, smaller: slice, again):
        return [*over("random_unstructured", UNSTRUCTURED[:few][amounts], masks),
                *(spec for layers in depths[:few][smaller]
                  for spec in models(seeds[:1] if profile == "smoke" else seeds, layers)),
                *models(again),
                *over("distil_from_sparse", TAUGHT[:few][taught], seeds),
                *over("random_structured", STRUCTURED[:few][amounts], masks)]

    claimed = part(slice(0, 3), slice(0, 2), slice(0, 1), seeds[1:])
    rest = part(slice(3, None), slice(2, None), slice(1, 1 if small else None), ())
    sized = [_sized(profile, task, size, seed) for size in SIZES if profile == "paper" for seed in seeds]
    return [*models([common.TEACHER_SEED]), *claimed, *rest, *sized]


def _sized(profile: str, task: str, size: str, seed: int) -> Spec:
    model, depth = SIZES[size]
    settings = profiles.settings(profile, task, model=model, depth=depth)
    made = common.teacher_spec(profile, task, settings, seed)
    return Spec(made.chapter, task, made.method, profile, seed, made.args | {"size": size}, made.settings)


def run(spec: Spec) -> dict:
    """Train or measure one run; ValueError for an unknown method."""
    known = {"finetune": _finetune, "random_unstructured": _measure, "random_structured": _measure,
             "distil_from_sparse": _distil}
    if spec.method not in known:
        raise ValueError(f"method: got {spec.method!r}; allowed: {', '.join(known)}")
    return known[spec.method](spec)


def _finetune(spec: Spec) -> dict:
    """A fine-tuned model, whose weights are kept for who builds on it."""
    from kdutils import checkpoints

    model, made = finetuned(spec)
    checkpoints.save(model, Store().model_path(spec))
    return made


def finetuned(spec: Spec) -> tuple:
    """The bottom `layers` layers of the pre-trained encoder, fine-tuned, and the outcome. The hash recorded is the
    encoder's as it was published, before anything is cut from it."""
    from kdutils import bert, checkpoints, distil

    settings, data = common.settings_of(spec), common.load_data(spec)
    whole = bert.load(settings.model, data.task.outputs, spec.seed)
    weights = checkpoints.hash_of(whole.bert)
    model = bert.keep_layers(bert.trim(whole, data.vocabulary), range(1, spec.args["layers"] + 1))
    result = distil.train(model, data.train, distil.fine_tuning(), settings, seed=spec.seed,
                          epochs=settings.teacher_epochs, lr=settings.teacher_lr,
                          evaluate=distil.evaluator(data.task, data.evaluation), progress=True)
    return model, common.outcome(result, **bert.counts(model), majority=common.majority(data), weights=weights)


def _sparse(model, spec: Spec):
    from kdutils.pilot import remove_units, zero_weights

    make = remove_units if spec.method == "random_structured" else zero_weights
    return make(model, spec.args["amount"], spec.seed) if spec.args["amount"] else model


def _measure(spec: Spec) -> dict:
    """Score the sparsified teacher on every evaluation set; nothing is trained."""
    return _measured(spec if spec.args["amount"] else replace(spec, seed=0))


@functools.lru_cache(maxsize=1)
def _measured(spec: Spec) -> dict:
    from kdutils import bert, distil, tasks, teacher
    from kdutils.pilot import reliability, zero_share

    made = common.bench(spec)
    model, sets = _sparse(made.teacher, spec), made.data.evaluation
    logits = {name: teacher.ask(model, rows).logits.numpy() for name, rows in sets.items()}
    metrics = {name: tasks.score(made.task, logits[name], rows.labels.numpy()) for name, rows in sets.items()}
    extra = {"encoder": bert.counts(model)["encoder"], "zero_share": zero_share(model)}
    extra |= {"majority": common.majority(made.data), "teacher_weights": made.weights}
    if not made.task.regression:
        name = "test" if "test" in sets else "dev"
        extra["reliability"] = reliability(logits[name], sets[name].labels.numpy())
    return common.outcome(distil.Outcome(epochs=[metrics]), **extra)


def _distil(spec: Spec) -> dict:
    """STARK's distillation into the layer-dropped student, which starts from the dense teacher; only what teaches
    differs."""
    from kdutils import bert, distil, teacher

    made = common.bench(spec)
    sparse = _sparse(made.teacher, spec)
    dense = sparse is made.teacher  # a sparse one is never asked again: nothing of it is kept
    taught = made.signals["train"] if dense else teacher.signals(sparse, made.data.train).to(made.device)
    student = bert.keep_layers(made.teacher, made.settings.layers)
    result = common.distil_student(made, student, distil.stark_kd(taught, made.settings.tau), spec.seed)
    return result | {"extra": result["extra"] | {"teacher_weights": made.weights}}
