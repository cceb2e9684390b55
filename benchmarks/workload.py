"""What is timed: a task's rows, MiniLM as teacher and students made of it. Weights do not change what a step takes, so
nothing is fine-tuned for a timing."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn

from kdutils import bert, data, distil, profiles


@dataclass(frozen=True)
class Workload:
    """A task's settings and data; `whole`, the pre-trained encoder with its full vocabulary, and `teacher`, with the
    task's own, as every run of the book has it."""

    settings: profiles.Settings
    data: data.Data
    whole: nn.Module
    teacher: nn.Module

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.data.train) // self.settings.batch_size)


def load(task: str, layers: tuple[int, ...]) -> Workload:
    """The workload of `task` at profile mini with students of `layers`; without GLUE, of Rotten Tomatoes."""
    try:
        settings = profiles.settings("mini", task, layers=layers)
        rows = data.load(task, settings)
    except RuntimeError as error:
        print(f"{error}\nmeasuring on Rotten Tomatoes, cut to 3,668 rows, instead")
        settings = profiles.settings("mini", "rotten", layers=layers, rows=3668)
        rows = data.load("rotten", settings)
    whole = bert.load(settings.model, rows.task.outputs).to(distil.best_device()).eval()
    return Workload(settings, rows, whole, bert.trim(copy.deepcopy(whole), rows.vocabulary.to(distil.best_device())))


def plain(model) -> nn.Module:
    """The same model as transformers makes it: its dropout and its attention, none of ours."""
    from transformers import BertForSequenceClassification

    made = BertForSequenceClassification(copy.deepcopy(model.config))
    made.load_state_dict(model.state_dict())
    return made.to(bert.device_of(model))
