"""The benchmarks run, on a tiny model, and the page Cost reads their records as they are meant."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import levers, loops, packs, paper, training, workload
from kdutils import bert, data, distil, dropout, experiments, figures, losses, profiles
from kdutils.pages import cost as cost_page
from kdutils.pages import paper_plan

torch.set_num_threads(1)

SETTINGS = profiles.settings("smoke", "synthetic", rows=96, batch_size=16, precision="fp32")


@pytest.fixture(scope="module")
def work():
    rows = data.load("synthetic", SETTINGS)
    whole = bert.load("tiny", 2)
    for module in whole.modules():
        if isinstance(module, dropout.Dropout):
            module.p = 0.0
    whole.config.hidden_dropout_prob = whole.config.attention_probs_dropout_prob = 0.0
    return workload.Workload(SETTINGS, rows, whole, bert.trim(copy.deepcopy(whole), rows.vocabulary))


def test_the_reference_loops_do_what_ours_does_without_its_levers(work):
    """Both loops on the same batches end with the weights of a loop written here."""
    start, teacher = bert.keep_layers(work.whole, (1, 2)), workload.plain(work.whole).eval()
    mine, steps = copy.deepcopy(start).train(), 8
    optimiser = torch.optim.AdamW(distil.decay_groups(mine, SETTINGS.weight_decay), lr=SETTINGS.lr)
    source = loops.batches(work, 3, work.data.vocabulary)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = SETTINGS.lr * min(step, (steps - step) / 7)  # a tenth of the steps, rounded, is one
        batch = next(source)
        told = bert.forward(teacher, batch)[0].detach()
        losses.stark(bert.forward(mine, batch)[0], told, batch["labels"])["loss"].backward()
        torch.nn.utils.clip_grad_norm_(mine.parameters(), SETTINGS.clip)
        optimiser.step()
        optimiser.zero_grad()
    theirs = workload.plain(start)
    assert len(loops.reference(work, teacher, theirs, work.data.vocabulary, steps, seed=3)) == steps
    for name, value in mine.state_dict().items():
        assert torch.allclose(theirs.state_dict()[name], value, atol=2e-5), name
    before = workload.plain(start)
    assert len(loops.trainer(work, teacher, before, work.data.vocabulary, steps)) == steps
    assert not torch.equal(before.classifier.weight, start.classifier.weight)


def test_every_part_measures(work):
    epochs = training.speed(work, 2)
    names = [row["what"] for row in epochs]
    assert names[:3] == ["reference loop", "Trainer subclass", "ours"] and all(row["seconds"] > 0 for row in epochs)
    assert epochs[2]["reference / it"] == pytest.approx(epochs[0]["seconds"] / epochs[2]["seconds"])
    anatomy = {row["what"]: row for row in training.profile(work, 2)}
    assert anatomy["teacher"]["ours"] == 0 < anatomy["teacher"]["reference loop"]
    for name in ("reference loop", "ours"):
        parts = sum(row[name] for what, row in anatomy.items() if what != "whole step")
        assert 0 < parts < 1.05 * anatomy["whole step"][name]
    score, step, full = training.scoring(work, 2)
    assert score["training steps"] == pytest.approx(score["seconds"] / step["seconds"])
    assert score["float32 steps"] == pytest.approx(score["seconds"] / full["seconds"])
    one, pack, _ = packs.compare(work, 2, 3)
    assert (one["at once"], pack["at once"]) == (1, 3) and 0 < one["share of peak"] < 1


def test_levers_are_measured(work, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **how: compiled.append(how) or f)  # needs a compiler, and a minute
    rows = {row["what"]: row for row in levers.levers(work, 2)}
    assert len(rows) == 4 and all(row["seconds"] > 0 for row in rows.values()) and compiled == [{"dynamic": True}]


def test_quality_is_compared_in_standard_errors():
    values = {"reference loop": (0.5, 0.7), "ours": (0.7, 0.9)}
    found = {name: [{"dev": {"f1": v}} for v in each] for name, each in values.items()}
    (row,) = training._compare(found, "dev", ("f1", "nll"))
    assert (row["reference"], row["ours"], row["seeds"]) == (pytest.approx(0.6), pytest.approx(0.8), 2)
    assert row["its error"] == pytest.approx(0.1) and row["difference / error"] == pytest.approx(0.2 / 0.02**0.5)


def test_the_paper_profile_runs_without_the_hub(capsys):
    """A run of each chapter's plan, cut to two timed steps; only the model is smaller than the profile's."""
    rows = paper.measure(2, apart=False, words=500, hidden_size=16, num_attention_heads=2, intermediate_size=16)
    trainings = [(piece.chapter, name) for piece in paper.PIECES for name in piece.trainings]
    passed = [(chapter, paper.PASS) for chapter in ("02_stark", "03_stark_auto")]
    assert sorted((row["chapter"], row["what"]) for row in rows) == sorted(trainings + passed)
    batches = {row["chapter"]: row["batch"] for row in rows}
    assert batches == dict.fromkeys(("01_pilot", "02_stark", "03_stark_auto"), 16) | dict.fromkeys(
        ("04_peakd", "05_knowledge_probes", "06_ksm"), 32)
    for row in rows:
        assert row["seconds"] > 0 < row["peak GiB"]
    measured = [record("paper", rows)]
    table, steps = cost_page.paper(measured), cost_page.trainings(measured)
    assert table["chapter"].tolist() == [name for name in experiments.CHAPTERS if name != "00_choices"]
    for row in steps.to_dict("records"):
        runs, passed = paper_plan.planned(experiments.plan(row["chapter"], "paper"))[row["what"]]
        assert row["runs"] == runs > 0 and row["hours"] == pytest.approx(passed / row["batch"] * row["seconds"] / 3600)
    assert table["hours"].sum() == pytest.approx(steps["hours"].sum())
    cost_page.paper_cost("04_peakd", measured)
    planned = sum(len(experiments.plan("04_peakd", "paper", task)) for task in profiles.task_names("paper"))
    said = capsys.readouterr().out
    assert said.startswith(f"04_peakd at profile paper: {planned:,} planned runs, about ")
    assert all(f"{row['what']} {row['seconds']:.2g} s ({row['batch']} rows)" in said
               for row in rows if row["chapter"] == "04_peakd")
    cost_page.paper_cost("04_peakd", [])
    assert "not measured yet" in capsys.readouterr().out


def test_every_training_of_the_paper_profile_is_counted():
    """Each planned run goes through its rows as its settings say; a plan's total is the sum."""
    names = {(piece.chapter, name) for piece in paper.PIECES for name in (*piece.trainings, paper.PASS)}
    for chapter in experiments.CHAPTERS:
        for spec in experiments.plan(chapter, "paper", "mrpc"):
            counted = paper_plan.passes(spec)
            assert {(chapter, name) for name in counted} <= names
            untrained = spec.method.startswith("random_") or (
                spec.method.removeprefix("tune-") in ("TAKD", "MetaKD", "DynaBERT"))
            assert (not counted) == untrained, str(spec)
    fine_tuned, taught = (experiments.common.make("01_pilot", "paper", "mrpc", method, 0) for method in
                          ("finetune", "distil_from_sparse"))
    assert paper_plan.planned([fine_tuned, fine_tuned, taught]) == {
        "fine-tuning": (2, pytest.approx(2 * 10 * 0.95 * 3668)), "student": (1, pytest.approx(10 * 0.95 * 3668))}


def test_a_measurement_replaces_the_same_devices_older_one(tmp_path, monkeypatch):
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "book").mkdir()
    monkeypatch.chdir(tmp_path)
    for seconds, part in ((1.0, "sweep"), (2.0, "sweep"), (3.0, "pages")):
        command.keep(command.record_of(part, "", [{"what": "a", "seconds": seconds}], 0.0))
    found = cost_page.benchmarks()
    assert [(r["part"], r["rows"][0]["seconds"]) for r in found] == [("pages", 3.0), ("sweep", 2.0)]
    assert found == [json.loads(line) for line in (tmp_path / "book" / "benchmarks.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("device", "mkl", "expected"), [
    ("AMD EPYC", "Intel(R) 64 architecture Intel(R) Architecture processors", ""),
    ("AMD EPYC", "Intel(R) Advanced Vector Extensions 512 (Intel(R) AVX-512)", " with Intel's MKL kernels"),
    ("Intel Xeon", "Intel(R) Advanced Vector Extensions 512 (Intel(R) AVX-512)", ""),
])
def test_an_amd_processor_that_mkl_takes_for_intels_is_another_device(monkeypatch, device, mkl, expected):
    def said(*_, env, **__):
        return SimpleNamespace(stdout=f"MKL_VERBOSE {mkl}" if env["MKL_VERBOSE"] == "1" else "")

    monkeypatch.setattr(command.subprocess, "run", said)
    assert command.told_otherwise(device) == expected


def record(part, rows, load=0.0, gpu=False):
    return {"part": part, "rows": rows, "load": load, "threads": 2, "gpu": gpu, "device": "a machine", "task": "",
            "dtype": "float32"}


def test_targets_are_judged_from_records():
    wall, cores = {"reference / it": 9.0, "Trainer / it": 5.0}, {"reference / it, cpu": 12.0, "Trainer / it, cpu": 4.0}
    ours = {"what": "ours"} | wall | cores
    pack = [{"what": "as a pack", "one at a time / it": 20.0, "minutes of 200 runs": 4.0}]
    met = cost_page.targets([record("training", [ours]), record("replicas", pack)]).set_index("measure")["met"]
    assert met.tolist() == ["no", "yes", *["not measured"] * 5]
    apart = record("quality", [{"what": f"test {name}", "difference / error": by}
                               for name, by in (("matthews", 0.5), ("accuracy", -1.5), ("agreement", 0.9))])
    apart["task"] = "sst2"  # whose verdicts read accuracy
    busy = [record("training", [ours], load=4.0), record("replicas", pack, gpu=True), apart]
    assert cost_page.targets(busy)["met"].tolist() == ["yes", "no", "no", "yes", "not measured", "yes", "yes"]
    assert cost_page.in_short(busy)["pack"] == "20.0 (a machine)"
    more = record("replicas", pack, gpu=True) | {"threads": 4}  # the same machine: its name alone is not enough
    assert cost_page.in_short([*busy, more])["pack"].endswith("and 20.0 (a machine, 4 threads, float32)")
    halves = record("replicas", pack, gpu=True) | {"dtype": "bfloat16"}
    assert cost_page.in_short([*busy, halves])["pack"] == "20.0 (a machine, float32) and 20.0 (a machine, bfloat16)"
    assert cost_page.in_short([*busy, halves, more])["pack"].count(", 2 threads, ") == 2
    assert cost_page.in_short([])["scoring"] == "not measured yet"


def test_parts_of_a_step_differ_in_more_than_colour():
    parts = [{"what": f"part {i}", "reference loop": 10.0, "ours": 1.0} for i in range(9)]
    fig, (ax,) = figures.panels()
    cost_page._bars(ax, {"rows": [*parts, {"what": "whole step", "reference loop": 90.0, "ours": 9.0}]})
    assert len({bar.get_hatch() for bar in ax.patches}) == len(ax.containers) == 9
    figures.plt.close(fig)
