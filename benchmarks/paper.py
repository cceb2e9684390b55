"""Profile paper without the hub: runs of its own plan, cut to a few steps, on a BERT-base of random weights.

The model and its tokenizer are written to a folder as a hub model would lie there, MRPC-shaped rows of made-up words to
another one in the hub's layout, and then `experiments.run` gets specs of `plan(chapter, "paper", "mrpc")` in which the
model's name is that folder, a selector has one episode, its phase is as long as what is timed, and every training ends
after a few steps. All else is the profile's: layers, rates, batches, precision. So this fails where the profile's runs
would. Each chapter runs in a process of its own, from which its peak memory is read.

What the rows hold: seconds (wall and cores') of a step of `batch` rows about as long as MRPC's (53 tokens), backward
pass and update included, KSM's updates too; of the teacher's pass, of as many rows. What a whole plan takes follows
from its rows (`kdutils.pages.paper_plan`). Taken as equal though they are not: tasks (their rows count as long as
MRPC's), students of other depths, and BERT-large, whose fine-tunings in chapter 01 the three smaller sizes offset; its
students in chapter 02 take longer. Memory is without the whole task's word embeddings (these rows have a third of
MRPC's words) and without its cached states, 20 KB a row.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import resource
import string
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.clock import now, row
from kdutils import experiments, tasks
from kdutils.experiments import ksm, probes
from kdutils.pages.paper_plan import PASS, passes
from kdutils.records import Spec

PROFILE, TASK = "paper", "mrpc"
TIMED = {"cpu": 3, "cuda": 20}  # steps, after one that is not: more where they are short
WARM = 1
BATCH = 32  # the largest of the chapters'
WORDS, LENGTH = 30_517, (50, 13)  # in the vocabulary; in a row, mean and standard deviation, as in MRPC


@dataclass(frozen=True)
class Piece:
    """A planned run that is cut short, and what its last trainings are called."""

    chapter: str
    method: str
    trainings: tuple[str, ...]
    args: dict = field(default_factory=dict)  # besides the method, what the first such run of the plan must have

    def spec(self, plan: list[Spec]) -> Spec:
        """That run of the chapter's plan. LookupError where there is none."""
        for spec in plan:
            if (spec.task, spec.method) == (TASK, self.method) and self.args.items() <= spec.args.items():
                return spec
        raise LookupError(f"plan of {self.chapter}: got no {self.method} with {self.args}; allowed: one of them")


PIECES = (
    Piece("01_pilot", "finetune", ("fine-tuning",)),
    Piece("01_pilot", "distil_from_sparse", ("student",), {"amount": 0.05}),
    Piece("02_stark", "STARK", ("student",), {"student": "dropped", "base": "KD", "scores": "knowledgeable"}),
    Piece("03_stark_auto", "STARK-Auto", ("student",)),
    Piece("04_peakd", "PatientKD", ("Patient KD",)),
    Piece("04_peakd", "Pea-KD", ("PTP", "stacked student")),
    Piece("05_knowledge_probes", "fixed", ("student",), {"knowledge": probes.ALL}),
    Piece("06_ksm", "KSM-soft", ("stage one", "student")),
)


# ------------------------------------------------------------------------------------------ what stands for the hub


def write_model(folder: Path, words: int = WORDS, **sizes) -> None:
    """A BERT of random weights, BERT-base unless `sizes` say otherwise, and a tokenizer of `words` words, in the files
    of a hub model."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast
    from transformers.utils import logging

    from kdutils import bert

    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    with bert.quiet(logging):
        BertForMaskedLM(BertConfig(vocab_size=words + len(special), **sizes)).save_pretrained(folder)
    file = folder / "vocab.txt"
    file.write_text("\n".join([*special, *vocabulary(words)]))
    made = BertTokenizerFast(vocab=str(file))
    if made.convert_tokens_to_ids("aaaa") == made.unk_token_id:  # older transformers name the argument otherwise
        made = BertTokenizerFast(vocab_file=str(file))
    made.save_pretrained(folder)


def vocabulary(words: int) -> list[str]:
    """That many words of four letters."""
    letters = itertools.product(string.ascii_lowercase, repeat=4)
    return ["".join(word) for word in itertools.islice(letters, words)]


def write_glue(folder: Path, rows: int, words: int = WORDS) -> None:
    """MRPC's three splits, `rows` of them in train, of random words, in the hub's layout."""
    import pandas as pd

    task, random, known = tasks.get(TASK), np.random.default_rng(0), np.array(vocabulary(words))
    splits = {"train": rows, task.dev_split: BATCH, task.test_split: BATCH}
    files = [{"split": split, "path": f"{TASK}/{split}-*"} for split in splits]
    (folder / TASK).mkdir(parents=True)
    configs = json.dumps([{"config_name": TASK, "data_files": files}])
    (folder / "README.md").write_text(f"---\nconfigs: {configs}\n---\n")
    for split, count in splits.items():
        lengths = random.normal(*LENGTH, count).round().astype(int).clip(20, 100)
        texts = [np.array_split(random.choice(known, length), 2) for length in lengths]
        table = {column: [" ".join(text[i]) for text in texts] for i, column in enumerate(task.columns)}
        table |= {"label": np.arange(count) % task.outputs, "idx": np.arange(count)}
        pd.DataFrame(table).to_parquet(folder / TASK / f"{split}-00000-of-00001.parquet")


@contextmanager
def stand_in(steps: int, words: int = WORDS, **sizes) -> Iterator[str]:
    """A temporary folder with the model, GLUE and a store, which `kdutils` reads and writes meanwhile; gives the
    model's name. There are rows for as many full batches as `steps` and the warm ones take, PTP's too."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        write_model(where / "model", words, **sizes)
        write_glue(where / "glue", 10 + round(1.2 * BATCH * (WARM + steps)), words)
        places = {"KDUTILS_RUNS": "runs", "KDUTILS_GLUE": "glue", "HF_DATASETS_CACHE": "cache"}
        with mock.patch.dict(os.environ, {name: str(where / place) for name, place in places.items()}):
            yield os.path.relpath(where / "model")  # a spec takes no absolute path


# ---------------------------------------------------------------------------------------------------------- measuring


def cut(spec: Spec, model: str, steps: int) -> Spec:
    """The spec as it can be run here: from `model`, and a selector's single episode with a phase of `steps` steps."""
    short = {"episodes": 1, "phase": steps} if probes.base(spec) in ksm.KSM else {}
    return replace(spec, args=spec.args | short, settings=spec.settings | {"model": model})


@dataclass
class Watch:
    """What was seen: of each training the batch size and the mean seconds (wall, cores') of a step, of each pass of a
    teacher over the rows of train the seconds of one row."""

    steps: int
    trainings: list[tuple[int, np.ndarray]] = field(default_factory=list)
    asked: list[np.ndarray] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Meanwhile, every training ends after `WARM + steps` steps. What `after_step` does (once in a phase: the
        reward) is left out of a step's time."""
        from kdutils import distil, teacher

        train, ask = distil.train, teacher.ask

        def trained(model, data, objective, settings, *, after_step: Callable | None = None, **options):
            begins, ends, most = [now()], [], WARM + self.steps

            def watched(step, worker):
                ends.append(now())
                if after_step:
                    after_step(step, worker)
                begins.append(now())

            outcome = train(model, data, objective, settings, after_step=watched, **(options | {"max_steps": most}))
            took = [end - begin for begin, end in zip(begins, ends, strict=False)]
            self.trainings.append((settings.batch_size, sum(took[WARM:]) / self.steps))
            return outcome

        def timed(model, data, *args, **options):
            begin = now()
            made = ask(model, data, *args, **options)
            if len(data) > BATCH:  # train
                self.asked.append((now() - begin) / len(data))
            return made

        with mock.patch.object(distil, "train", trained), mock.patch.object(teacher, "ask", timed):
            yield self


def chapter(name: str, model: str, steps: int) -> list[dict]:
    """The chapter's pieces, run: a row for each training, and for the teacher's pass where a planned run makes one."""
    plan, found = experiments.plan(name, PROFILE), {}
    for piece in (piece for piece in PIECES if piece.chapter == name):
        watch, spec = Watch(steps), piece.spec(plan)
        with watch.watching():
            experiments.run(cut(spec, model, steps))
        last = watch.trainings[-len(piece.trainings) :]
        found |= dict(zip(piece.trainings, last, strict=True))
        if PASS in passes(spec):
            batch = last[0][0]
            found[PASS] = batch, watch.asked[-1] * batch
    most = peak_bytes() / 2**30
    return [row(what, seconds, chapter=name, batch=batch) | {"peak GiB": most}
            for what, (batch, seconds) in found.items()]


def peak_bytes() -> int:
    """The most memory so far: the GPU's where there is one, else this process's own. (`getrusage` would count what the
    process that started this one had, too.)"""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


def measure(steps: int | None = None, apart: bool = True, **sizes) -> list[dict]:
    """All chapters' rows; `apart`, each chapter in a process of its own. `sizes` are `stand_in`'s."""
    import torch

    from kdutils import distil

    torch.zeros(1, device=distil.best_device())  # so that the record names the GPU, which only the children use
    steps = steps or TIMED[distil.best_device().type]
    names, rows = list(dict.fromkeys(piece.chapter for piece in PIECES)), []
    with stand_in(steps, **sizes) as model:
        for name in names:
            if not apart:
                rows += chapter(name, model, steps)
                continue
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
                rows += one.submit(chapter, name, model, steps).result()
    return rows
