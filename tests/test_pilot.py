"""Chapter 01's runs: what is zeroed and removed, the plan against the claims, and the smoke profile end to end."""

import json
import warnings
from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from kdutils import bert, checkpoints, claims, distil, experiments, pilot, profiles, tasks, teacher
from kdutils.experiments import common
from kdutils.experiments import pilot as chapter
from kdutils.pages import pilot as pilot_page
from kdutils.records import Store, frame, run_once
from kdutils.verdicts import select

torch.set_num_threads(1)
matplotlib.use("agg")


def model():
    return bert.load("tiny", 2).eval()


def test_zeroed_weights():
    dense, sparse = model(), pilot.zero_weights(model(), 0.1, seed=0)
    found = dict(sparse.named_parameters())  # torch's pruning changes their order
    assert len(found) == len(list(dense.parameters()))
    for name, before in dense.named_parameters():
        after = found[name]
        zeros = int((after == 0).sum())
        if "encoder" in name and name.endswith("weight") and "LayerNorm" not in name:
            assert zeros == round(0.1 * before.numel()), name  # of every matrix, exactly
            assert torch.equal(after[after != 0], before[after != 0])
        else:
            assert torch.equal(before, after), name
    assert pilot.zero_share(sparse) == pytest.approx(0.1, abs=1e-3) and pilot.zero_share(dense) == 0
    assert pilot.zero_share(pilot.zero_weights(model(), 1, seed=0)) == 1  # an int is a share too, not a count
    again, other = pilot.zero_weights(model(), 0.1, seed=0), pilot.zero_weights(model(), 0.1, seed=1)
    assert checkpoints.hash_of(again) == checkpoints.hash_of(sparse) != checkpoints.hash_of(other)


def test_removed_units():
    dense, made = model(), pilot.remove_units(model(), 0.5, seed=0)
    heads = [layer.attention.self.num_attention_heads for layer in made.bert.encoder.layer]
    neurons = [layer.output.dense.in_features for layer in made.bert.encoder.layer]
    assert sum(heads) == 8 and sum(neurons) == 128 and len(set(neurons)) > 1  # of all, not of each layer
    unit = 4 * 32 * 8 + 3 * 8, 2 * 32 + 1  # a head's columns of four matrices and three biases; a neuron's
    gone = bert.counts(dense)["encoder"] - bert.counts(made)["encoder"]
    assert gone == 8 * unit[0] + 128 * unit[1]
    assert checkpoints.hash_of(pilot.remove_units(model(), 0.5, 0)) == checkpoints.hash_of(made)
    assert checkpoints.hash_of(pilot.remove_units(model(), 0.5, 1)) != checkpoints.hash_of(made)
    assert checkpoints.hash_of(pilot.remove_units(model(), 0.0, 0)) == checkpoints.hash_of(dense)
    for amount in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"amount: got {amount}; allowed: 0 to 1"):
            pilot.remove_units(dense, amount, 0)
        with pytest.raises(ValueError, match=f"amount: got {amount}; allowed: 0 to 1"):
            pilot.zero_weights(dense, amount, 0)


def test_reliability_by_hand():
    logits = np.log([[0.05, 0.95], [0.09, 0.91], [0.62, 0.38], [0.68, 0.32]])
    bars = pilot.reliability(logits, np.array([1, 0, 0, 0]))
    assert bars["share"] == [0, 0, 0, 0, 0, 0, 0.5, 0, 0, 0.5]
    assert (bars["accuracy"][6], bars["accuracy"][9]) == (1, 0.5)
    assert (bars["confidence"][6], bars["confidence"][9]) == (0.65, 0.93)


# --------------------------------------------------------------------------------------------------------------- plan


def test_the_plan_begins_with_the_teacher():
    for profile in profiles.PROFILES:
        for task in profiles.task_names(profile):
            first = experiments.plan("01_pilot", profile, task)[0]
            settings = profiles.settings(profile, task)
            assert first == common.teacher_spec(profile, task, settings) and first.args == {"layers": settings.depth}


def test_the_plan_has_every_run_that_the_chapter_s_claims_need():
    wanted = [claim for claim in claims.load()["claims"] if claim["chapter"] == "01_pilot"]
    assert len(wanted) >= 5
    for claim in wanted:
        for task in claim["tasks"]:
            planned = frame_of(experiments.plan("01_pilot", "mini", task))
            seeds = [set(select(planned, claim[side])["seed"]) for side in "ab"]
            assert len(seeds[0] & seeds[1]) >= claim["seeds"], (claim["id"], task)


def frame_of(specs):
    blank = {"metrics": {}, "best": {}, "losses": {}, "extra": {}, "seconds": 0, "device": ""}
    return frame([blank | {"key": s.key, "spec": {f: getattr(s, f) for f in s.__dataclass_fields__}} for s in specs])


def test_what_the_issue_asks_for_is_planned():
    planned = frame_of(experiments.plan("01_pilot", "mini", "mrpc"))
    masks = planned.groupby(["method", "amount"])["seed"].nunique()
    assert sorted(masks["random_unstructured"].index) == [0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3]
    assert {0.1, 0.3, 0.5, 0.7} <= set(masks["random_structured"].index)
    assert masks[["random_unstructured", "random_structured"]].min() >= 10
    assert masks["distil_from_sparse"].index.size >= 3 and masks["distil_from_sparse"].min() >= 5
    sizes = planned[planned["method"] == "finetune"].groupby("layers")["seed"].nunique()
    assert sorted(sizes.index) == [1, 2, 3, 4, 6] and sizes[6] >= 5
    paper = experiments.plan("01_pilot", "paper", "mrpc")
    assert len({s.settings["model"] for s in paper if s.method == "finetune"}) == 5


def test_an_unknown_method_is_one_line():
    spec = common.make("01_pilot", "smoke", "synthetic", "prune", 0)
    with pytest.raises(ValueError, match="method: got 'prune'; allowed: finetune, random_unstructured"):
        experiments.run(spec)


# --------------------------------------------------------------------------------------------------------------- page


@pytest.fixture
def shown():
    """Three masks of 10 % on MRPC, and two pairs of students; numbers that are easy to follow."""
    def row(method, seed, score, amount=None, **more):
        test = {"test_matthews": score, "test_accuracy": 0.7, "test_confidence": score + 0.3, "test_nll": 0.5}
        test |= {"dev_f1": 0.8, "extra_majority_test_matthews": 0.0, "extra_majority_dev_f1": 0.812}
        return {"task": "mrpc", "method": method, "seed": seed, "amount": amount, **test, **more}

    rows = [row("random_unstructured", seed, 0.5, 0.0) for seed in range(3)]
    rows += [row("random_unstructured", seed, score, 0.1) for seed, score in enumerate((0.2, 0.3, 0.4))]
    rows += [row("distil_from_sparse", seed, 0.40, 0.0, test_agreement=0.9) for seed in (0, 1)]
    rows += [row("distil_from_sparse", seed, score, 0.1, test_agreement=0.7) for seed, score in ((1, 0.39), (0, 0.45))]
    rows += [row("finetune", 0, 0.5, layers=6, extra_encoder=10_646_784)]
    return pilot_page.measured(pd.DataFrame(rows))


def test_amounts_and_differences_by_hand(shown):
    table = pilot_page.amounts(shown, "random_unstructured").set_index("share")
    half = 10 * 4.302652729696142 / 3**0.5
    assert table.loc["10\xa0%", "score"].split() == ["30.0", "±", f"{half:.1f}"] and table.loc["10\xa0%", "n"] == "3"
    assert table.loc["0\xa0%", "score"] == "50.0" and table.loc["0\xa0%", "n"] == "1"  # one dense teacher
    assert table.loc["10\xa0%", "NLL"].startswith("0.50") and table.loc["10\xa0%", "entropy"] == "–"
    assert table.loc["10\xa0%", "paper's metric, dev"].startswith("80.0")
    assert table["task"].unique().tolist() == ["mrpc: matthews, paper's f1"]
    assert table.loc["constant answer", ["score", "paper's metric, dev", "n"]].tolist() == ["0.0", "81.2", "–"]
    lost, least = pilot_page.compared(shown).to_dict("records")
    assert lost == {"what": "weights zeroed", "share": "10\xa0%", "mrpc": f"−20.0 ± {half:.1f} (3)"}
    assert least == {"what": "constant answer", "share": "–", "mrpc": "−50.0"}
    some = shown.assign(majority=shown["majority"].where(shown["amount"] != 0.0))  # older runs did not record it
    assert pilot_page.compared(some).to_dict("records")[-1] == least
    counts = pilot_page.counts(shown).set_index("runs")["mrpc"]
    assert counts["teachers, weights zeroed"] == 6 and counts.sum() == len(shown)


def test_students_are_paired_by_seed(shown):
    (name, found), = pilot_page.taught(shown).items()
    assert name == "MRPC, 10\xa0% zeroed" and found["effect"] == pytest.approx((5 - 1) / 2) and found["n"] == 2
    table = pilot_page.students(shown).set_index("zeroed")
    assert table.loc["10\xa0%", "students"].startswith("42.0") and table.loc["10\xa0%", "agreement"].startswith("70.0")
    assert table.loc["10\xa0%", "teacher"].startswith("25.0")  # of masks 0 and 1, which the two students had
    assert table.loc["0\xa0%", "teacher"] == "50.0"
    assert table.loc["10\xa0%", pilot_page.LESS] == "+2.0 ± 38.1" and table.loc["0\xa0%", pilot_page.LESS] == "–"
    assert pilot_page.taught_in_words(shown) == (
        "Here, points lost by teachers and by their students at 10\xa0% zeroed: MRPC 25.0 and −2.0.")


def test_scattered_zeros_against_whole_units(shown):
    units = shown[shown["amount"] == 0.1].query("method == 'random_unstructured'").assign(method="random_structured")
    assert pilot_page.scattered_or_bundled(pd.concat([shown, units.assign(score=0.31)])) == (
        "Here, at 10\xa0% and on MRPC, scattered zeros cost more on average in 1 of 1 cases.")
    assert "in 0 of 1" in pilot_page.scattered_or_bundled(pd.concat([shown, units.assign(score=0.29)]))
    assert pilot_page.scattered_or_bundled(shown) == "Here: no runs yet."


def test_what_confidence_fell_with(shown):
    known = shown.assign(entropy=0.5, nll=shown["nll"] + shown["amount"].astype(float), ece=0.1)
    known["ece"] = 0.1 - known["amount"].astype(float) / 2
    assert pilot_page.honesty_in_words(known) == (
        "Here, at 10\xa0% zeroed: on MRPC confidence goes from 80.0 to 60.0, NLL goes from 0.50 to 0.60, ECE goes from "
        "10.0 to 5.0 (at its lowest 5.0, with 10\xa0% zeroed), and confidence less accuracy from +10.0 to −10.0.")
    assert pilot_page.honesty_in_words(shown).endswith("no runs yet.")  # without an entropy and a calibration error


def test_the_papers_five_sizes_are_five_places():
    """BERT-mini and BERT-small both have four layers: their sizes differ by their parameters."""
    sizes = {"mini": 3.16, "small": 12.61, "medium": 25.22, None: 85.05, "large": 302.31}
    rows = [{"task": "mrpc", "method": "finetune", "seed": seed, "layers": 4, "size": size, "amount": None,
             "extra_encoder": millions * 1e6, "test_matthews": 0.4 + i / 10, "test_confidence": 0.8, "dev_f1": 0.8}
            for i, (size, millions) in enumerate(sizes.items()) for seed in (0, 1)]
    data = pilot_page.measured(pd.DataFrame(rows))
    figure = pilot_page.over_sizes(data)
    axis = figure.axes[0]
    assert axis.get_xscale() == "log" and "millions" in axis.get_xlabel()
    drawn = [len(line.get_xdata()) for line in axis.lines if line.get_linestyle() == "-"]
    assert sorted(drawn) == [0, 5]  # the legend's own line, and the curve
    assert [text.get_text() for text in axis.get_xticklabels()] == ["3.16", "12.6", "25.2", "85", "302"]
    assert "score 40.0 to 80.0" in pilot_page.in_words(pilot_page.sized(data), "millions", "parameters")
    figure.canvas.draw()
    plt.close(figure)


def test_two_points_are_not_joined(shown):
    figure = pilot_page.over_amounts(shown, "random_unstructured")
    assert {line.get_linestyle() for line in figure.axes[0].lines if len(line.get_xdata())} == {"None"}
    (legend,) = figure.legends  # whose lines are there for the dashes
    assert {line.get_linestyle() for line in legend.get_lines()} == {"-"}
    plt.close(figure)


def test_reliability_pools_masks_by_their_rows():
    runs = pd.DataFrame({"extra_reliability_share": [[0.5, 0.5], [0.0, 1.0]],
                         "extra_reliability_confidence": [[0.6, 0.9], [0.0, 0.8]],
                         "extra_reliability_accuracy": [[0.2, 1.0], [0.0, 0.4]]})
    bars = pilot_page._bars(runs)
    assert bars["share"].tolist() == [0.25, 0.75] and bars["confidence"].tolist() == pytest.approx([0.6, 2.5 / 3])
    assert bars["accuracy"].tolist() == pytest.approx([0.2, 0.6])
    runs = runs.assign(task="mrpc", method="random_unstructured", amount=0.1)
    assert pilot_page.too_sure_in_words(runs, "mrpc").endswith("10\xa0% weights zeroed +27.5.")
    assert pilot_page.too_sure_in_words(runs, "sst2").endswith("no runs yet.")


def test_a_page_without_runs_says_so(shown):
    only = shown[shown["method"] == "finetune"]
    for figure in (pilot_page.over_amounts(only, "random_structured"), pilot_page.reliability(only, "mrpc"),
                   pilot_page.differences({})):
        assert "no runs yet" in [text.get_text() for axis in figure.axes for text in axis.texts]
        plt.close(figure)
    assert pilot_page.reliability_in_words(only, "mrpc").endswith("No runs yet.")
    assert pilot_page.amounts(only, "random_structured").empty
    assert pilot_page.taught_in_words(only).endswith("no runs yet.")
    assert pilot_page.compared(only).empty and pilot_page.students(only).empty
    sizes = pilot_page.sizes(only)
    assert sizes[pilot_page.MILLIONS].tolist() == ["10.65", "–"] and sizes["score"].tolist() == ["50.0", "0.0"]


# ------------------------------------------------------------------------------------------------------ smoke, trained


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Run one spec of the smoke plan, in a store of its own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("KDUTILS_RUNS", str(tmp_path_factory.mktemp("runs")))
    common._bench.cache_clear()
    chapter._measured.cache_clear()

    def run(method, seed, **args):
        return run_once(common.make("01_pilot", "smoke", "synthetic", method, seed, args), experiments.run, Store())

    teacher_spec = experiments.plan("01_pilot", "smoke")[0]
    run.teacher = run_once(teacher_spec, experiments.run, Store())
    run.bench = common.bench(common.make("01_pilot", "smoke", "synthetic", "finetune", 0))
    yield run
    patch.undo()
    common._bench.cache_clear()
    chapter._measured.cache_clear()


def test_the_smoke_teacher_learns_its_task(smoke):
    assert smoke.teacher["metrics"]["test"]["accuracy"] > 0.9
    assert smoke.teacher["extra"]["encoder"] == bert.counts(smoke.bench.teacher)["encoder"]


def test_amount_zero_is_the_dense_teacher_under_every_seed(smoke):
    found = [smoke("random_unstructured", seed, amount=0.0)["metrics"] for seed in (0, 1)]
    assert found[0] == found[1]
    rows = smoke.bench.data.dev
    dense = tasks.score(smoke.bench.task, smoke.bench.signals["dev"].logits.numpy(), rows.labels.numpy())
    assert found[0]["dev"] == pytest.approx(dense)


@pytest.mark.parametrize("method", ["random_unstructured", "random_structured"])
def test_sparsity_lowers_accuracy_and_confidence(smoke, method):
    dense = smoke("random_unstructured", 0, amount=0.0)
    sparse = [smoke(method, seed, amount=0.5) for seed in range(6)]
    for name in ("accuracy", "confidence"):
        assert np.mean([r["metrics"]["test"][name] for r in sparse]) < dense["metrics"]["test"][name] - 0.05
    bars = sparse[0]["extra"]["reliability"]
    assert sum(bars["share"]) == pytest.approx(1, abs=1e-4)
    accuracy = np.dot(bars["share"], bars["accuracy"])
    assert accuracy == pytest.approx(sparse[0]["metrics"]["test"]["accuracy"], abs=1e-3)
    assert sparse[0]["metrics"] != sparse[1]["metrics"]


def test_a_student_of_the_dense_teacher_is_starks_kd(smoke):
    made = smoke("distil_from_sparse", 1, amount=0.0)
    bench = smoke.bench
    student = bert.keep_layers(bench.teacher, bench.settings.layers)
    objective = distil.stark_kd(bench.signals["train"], bench.settings.tau)
    plain = common.distil_student(bench, student, objective, seed=1)
    assert made["metrics"] == plain["metrics"] and made["curve"] == plain["curve"]
    other = smoke("distil_from_sparse", 1, amount=0.1)
    assert other["curve"] != made["curve"]


def test_records_name_the_weights_that_they_began_with(smoke):
    published = checkpoints.hash_of(bert.load("tiny", 2, seed=0).bert)
    shallow = smoke("finetune", 0, layers=2)
    assert smoke.teacher["extra"]["weights"] == shallow["extra"]["weights"] == published
    of_teacher = checkpoints.hash_of(smoke.bench.teacher)
    for made in (smoke("random_unstructured", 0, amount=0.5), smoke("distil_from_sparse", 1, amount=0.1)):
        assert made["extra"]["teacher_weights"] == of_teacher  # not of the sparse one, which is made from it
    sparse = replace(smoke.bench, teacher=pilot.zero_weights(smoke.bench.teacher, 0.5, 0))
    assert common.about(sparse)["teacher_weights"] == of_teacher


def test_another_teacher_than_the_stores_is_announced(smoke):
    settings = smoke.bench.settings
    spec = common.make("01_pilot", "smoke", "synthetic", "distil_from_sparse", 1, {"amount": 0.1})
    run_once(spec, experiments.run, Store())
    teacher_of = common.teacher_spec("smoke", "synthetic", settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        common._compare(teacher_of, smoke.bench.weights)
        common._compare(common.teacher_spec("smoke", "synthetic", replace(settings, teacher_lr=1.0)), "another")
    with pytest.warns(UserWarning, match=f"got weights another, .* began with {smoke.bench.weights}"):
        common._compare(teacher_of, "another")
    path = Store().path(spec)  # a record of a setting that there is no more is a record still
    older = json.loads(path.read_text())
    path.write_text(json.dumps(older | {"spec": older["spec"] | {"settings": older["spec"]["settings"] | {"gone": 1}}}))
    with pytest.warns(UserWarning, match="got weights another"):
        common._compare(teacher_of, "another")


def test_a_sparse_teacher_teaches_what_it_says(smoke, monkeypatch):
    """What the objective is given are the sparse teacher's own logits on train, and the student learns by it."""
    given = {}
    monkeypatch.setattr(distil, "stark_kd", lambda told, tau: given.update(told=told, tau=tau) or "objective")
    monkeypatch.setattr(common, "distil_student", lambda *asked: given.update(asked=asked) or {"extra": {}})
    spec = common.make("01_pilot", "smoke", "synthetic", "distil_from_sparse", 1, {"amount": 0.1})
    chapter.run(spec)
    bench = smoke.bench
    sparse = teacher.ask(pilot.zero_weights(bench.teacher, 0.1, seed=1), bench.data.train)
    assert torch.equal(given["told"].logits, sparse.logits) and given["tau"] == bench.settings.tau
    assert not torch.equal(sparse.logits, bench.signals["train"].logits)
    made, student, objective, seed = given["asked"]
    dense = bert.keep_layers(bench.teacher, bench.settings.layers)
    assert (made, objective, seed) == (bench, "objective", 1)
    assert checkpoints.hash_of(student) == checkpoints.hash_of(dense)
