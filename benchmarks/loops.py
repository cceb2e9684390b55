"""The loops that ours is measured against: as STARK's official code writes it, and a transformers `Trainer`.

Both ask the teacher at every step, compute in float32, shuffle rows whatever their length and pad each batch to its own
longest row; loss, rate, schedule and clipping are those of `distil.train`.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from benchmarks.clock import now
from benchmarks.workload import Workload
from kdutils import bert, distil, losses

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def batches(work: Workload, seed: int, vocabulary: torch.Tensor) -> Iterator[dict]:
    """Batches in random order for ever, an epoch after the other; token ids are positions in `vocabulary`."""
    generator, rows = torch.Generator().manual_seed(seed), work.data.train
    while True:
        for part in torch.randperm(len(rows), generator=generator).split(work.settings.batch_size):
            batch = rows.batch(part)
            yield batch | {"input_ids": vocabulary[batch["input_ids"]]}


def reference(work: Workload, teacher: nn.Module, student: nn.Module, vocabulary: torch.Tensor, steps: int,
              seed: int = 0, after_step: Callable[[int], None] = lambda step: None) -> list[np.ndarray]:
    """Train the plain `student` in place for `steps` steps as the official loop does; the time after each."""
    from transformers import get_linear_schedule_with_warmup

    settings, device, ends = work.settings, bert.device_of(student), []
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(distil.decay_groups(student, settings.weight_decay), lr=settings.lr)
    schedule = get_linear_schedule_with_warmup(optimiser, round(settings.warmup * steps), steps)
    teacher.eval(), student.train()
    for step, batch in enumerate(itertools.islice(batches(work, seed, vocabulary), steps), 1):
        batch = {name: value.to(device) for name, value in batch.items()}
        inputs = {name: batch[name] for name in INPUTS}
        with torch.no_grad(), torch.profiler.record_function("teacher"):
            told = teacher(**inputs).logits
        losses.stark(student(**inputs).logits, told, batch["labels"], settings.tau)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), settings.clip)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        ends.append(now())
        after_step(step)
    return ends


def trainer(work: Workload, teacher: nn.Module, student: nn.Module, vocabulary: torch.Tensor,
            steps: int) -> list[np.ndarray]:
    """The same by a subclass of transformers' `Trainer`, whose defaults for the rest are kept."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    settings, ends = work.settings, []

    class Distiller(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            labels = inputs.pop("labels")
            with torch.no_grad():
                told = teacher(**inputs).logits
            outputs = model(**inputs)
            loss = losses.stark(outputs.logits, told, labels, settings.tau)["loss"]
            return (loss, outputs) if return_outputs else loss

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append(now())

    def collate(rows):
        batch = work.data.train.batch(torch.tensor(rows))
        return {name: batch[name] for name in (*INPUTS, "labels")} | {"input_ids": vocabulary[batch["input_ids"]]}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=settings.batch_size, learning_rate=settings.lr,
            weight_decay=settings.weight_decay, warmup_steps=round(settings.warmup * steps), seed=0,
            max_grad_norm=settings.clip, lr_scheduler_type="linear", logging_strategy="no", save_strategy="no",
            report_to=[], disable_tqdm=True, remove_unused_columns=False, use_cpu=not torch.cuda.is_available())
        teacher.eval()
        made = Distiller(student, arguments, data_collator=collate, train_dataset=list(range(len(work.data.train))),
                         callbacks=[Clock()])
        made.remove_callback(PrinterCallback)
        made.train()
    return ends
