"""Chapter 01, STARK's pilot study: size, random sparsification and confidence; it also makes every task's teacher."""

from __future__ import annotations

from kdutils.experiments import common
from kdutils.records import Spec, Store


def plan(profile: str, task: str) -> list[Spec]:
    from kdutils import profiles

    settings = profiles.settings(profile, task)
    return [common.teacher_spec(profile, task, settings)]


def run(spec: Spec) -> dict:
    return _finetune(spec)


def _finetune(spec: Spec) -> dict:
    """Fine-tune the bottom `layers` layers of the pre-trained encoder; the weights are kept for those who build on it."""
    from kdutils import bert, distil

    settings, data = common.settings_of(spec), common.load_data(spec)
    model = bert.keep_layers(common.pretrained(settings, data, spec.seed), range(1, spec.args["layers"] + 1))
    result = distil.train(model, data.train, distil.fine_tuning(), settings, seed=spec.seed, epochs=settings.teacher_epochs,
                          lr=settings.teacher_lr, evaluate=distil.evaluator(data.task, data.evaluation))
    bert.save(model, Store().model_path(spec))
    return common.outcome(result, **bert.counts(model))
