"""What chapters 05 and 06 show, on made-up runs with known effects."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from kdutils import claims, figures, tables
from kdutils.pages import ksm as ksm_page
from kdutils.pages import luck as luck_page
from kdutils.pages import probes as probes_page
from kdutils.tables import judged

TYPES = probes_page.TYPES


def run(method, seed, score, task="mrpc", **more):
    """A row of `records.frame` with a score on test and dev."""
    made = {"profile": "mini", "chapter": "05_knowledge_probes", "task": task, "method": method, "seed": seed,
            "test_matthews": score, "dev_matthews": score, "dev_accuracy": score, "best_dev_f1": score,
            "best_dev_accuracy": score, "held_matthews": score, "extra_teacher_test_matthews": 0.5,
            "extra_majority_test_matthews": 0.0}
    return made | more


def measured(rows, page=probes_page):
    return page.measured(pd.DataFrame(rows))


def draws(count, score, seed=0):
    """Random-All runs whose shares of each type in each third are random, and whose score follows from them."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        shares = {kind: list(rng.uniform(0.4, 0.6, 3)) for kind in TYPES}
        rows.append(run("Random-All", i, score(shares, rng), draw=i)
                    | {f"extra_chosen_{kind}": values for kind, values in shares.items()})
    return measured(rows)


def test_order_statistics_of_equals_by_enumeration():
    """Three students, two rows, 0.7: every outcome of the six answers, weighed."""
    worst = best = 0.0
    for answers in itertools.product((0, 1), repeat=6):
        chance = np.prod([0.7 if a else 0.3 for a in answers])
        right = [(answers[i] + answers[i + 1]) / 2 for i in (0, 2, 4)]
        worst, best = worst + chance * min(right), best + chance * max(right)
    assert luck_page.best_of(3, 2, 0.7) == pytest.approx((worst, best))


def test_the_papers_range_beside_that_of_equals():
    table = luck_page.paper_luck()
    assert table["range"].tolist() == pytest.approx([68.4 - 58.3, 67.2 - 58.9, 91.3 - 86.1, 90.7 - 87.9])
    rng = np.random.default_rng(0)
    simulated = rng.binomial(277, 0.6335, (4000, 200)) / 2.77
    assert table["equals: range"].iloc[0] == pytest.approx(np.ptp(simulated, axis=1).mean(), abs=0.2)


def test_slopes_are_found_where_they_were_put():
    """FinK in the first third is worth 10 points for all steps, RelK in the last costs 20; the rest is nothing."""
    data = draws(60, lambda s, rng: 0.3 + 0.10 * s["FinK"][0] - 0.20 * s["RelK"][2] + rng.normal(0, 0.002))
    found = probes_page.regression(data, "mrpc")
    assert len(found) == 12 and {e["n"] for e in found.values()} == {60}
    assert found["FinK first"]["effect"] == pytest.approx(1.0, abs=0.2) and found["FinK first"]["low"] > 0
    assert found["RelK last"]["effect"] == pytest.approx(-2.0, abs=0.2) and found["RelK last"]["high"] < 0
    assert abs(found["ResK first"]["effect"]) < 0.3
    assert probes_page.explained(data, "mrpc") > 0.8
    overall = probes_page.regression(data, "mrpc", by="all")
    assert list(overall) == list(TYPES) and overall["RelK"]["effect"] == pytest.approx(-2.0, abs=1)


def test_chance_explains_nothing_and_few_runs_give_no_slopes():
    noise = draws(200, lambda s, rng: rng.normal(0.3, 0.02))
    assert abs(probes_page.explained(noise, "mrpc")) < 0.12
    assert probes_page.regression(draws(14, lambda s, rng: rng.normal(0.3, 0.02)), "mrpc") == {}


def test_luck_is_best_worst_and_spread():
    data = measured([run("Random-All", i, s) for i, s in enumerate((0.6, 0.7, 0.9))] + [run("fixed-seed", 5, 0.7)])
    first, null = luck_page.ranges(data).to_dict("records")
    assert (first["best"], first["worst"], first["n"]) == pytest.approx((90, 60, 3))
    assert first["range"] == pytest.approx(30) and first["sd"] == pytest.approx(15.2753, abs=1e-3)
    low, high = luck_page.best_of(3, 408, 0.7)
    assert first["range of equals"] == pytest.approx(100 * (high - low))
    assert null["policy"] == "seeds alone" and np.isnan(null["sd"]) and null["range of equals"] == pytest.approx(0)


def test_a_sequence_that_only_was_lucky_falls_back():
    first = [run("Random-All", i, s, draw=i) for i, s in enumerate((0.9, 0.6, 0.5))]
    again = [run("replay", 1000 + i, 0.6 + i / 100, draw=draw, was=was) for i in range(3)
             for draw, was in ((0, "best"), (1, "middle"))]
    data = measured(first + again)
    best, middle = luck_page.replayed(data).to_dict("records")
    assert best["first time"] == pytest.approx(90) and best["replayed"] == "61.0 ± 2.5 (3)"
    more = [run("replay", r["seed"], r["test_matthews"], draw=2, was="best") for r in again[::2]]
    shared = luck_page.replayed(measured(first + again + more))["replayed"]
    assert shared.iloc[0] == best["replayed"], "sequences share their seeds"
    assert middle["replayed"] == best["replayed"]
    found = luck_page.stays_lucky(data, "mrpc")
    assert found["effect"] == pytest.approx(0) and found["n"] == 3
    assert luck_page.stays_lucky_in_words(data) == "0.0 (3) on MRPC"
    assert luck_page.stays_lucky_in_words(data[:3]) == "–"


def test_random_selection_may_be_worse_on_average_and_its_best_no_better():
    rows = [run("fixed-seed", s, 0.40 + s / 100) for s in range(5, 10)]
    rows += [run("Random-All", s, 0.38 + s / 100 + s % 2 / 1000, draw=s) for s in range(12)]
    rows += [run("Random-One", s, 0.40 + s / 100 + (s % 2 - 0.5) / 100, draw=s) for s in range(10)]
    told = luck_page.beside_fixed(measured(rows))
    assert told.startswith("on mrpc Random-All less seeds alone is −1.94 ± 0.07 (5) points (clear of zero: worse), "
                           "Random-One less seeds alone is +0.10 ± 0.68 (5) points, and")
    assert told.endswith("the best of the first 5 runs has: Random-All 42.0, Random-One 43.5, seeds alone 49.0")
    assert luck_page.beside_fixed(measured(rows[:5])) == ""


def test_methods_have_their_readers_names():
    rows = [run("fixed", 0, 0.3), run("fixed-4L", 0, 0.3), run("fixed-seed", 5, 0.3), run("fixed", 0, 0.3, task="sst2")]
    table = probes_page.counts(measured(rows)).set_index("method")
    assert sorted(table.index) == ["fixed", "fixed, 4 layers", "seeds alone"]
    assert table.loc["fixed", ["mrpc", "sst2"]].tolist() == [1, 1]
    names = {"KSM-soft-2L": "soft KSM, 2 layers", "vanilla-KD-augmented": "vanilla KD, changed copies",
             "finetune-repeated": "fine-tuning, unchanged copies", "PKD": "PKD", "transfer-2L": "transfer, 2 layers"}
    assert {name: ksm_page.called(name) for name in names} == names
    assert ksm_page.counts(selectors())["mrpc"].tolist() == [5] * len(ksm_page.METHODS)


def test_trials_with_another_teacher_are_no_teachers_of_the_runs():
    rows = [run("fixed", 0, 0.3), run("tuning", 900, 0.3, extra_teacher_test_matthews=0.9)]
    assert probes_page.marks(measured(rows)) == "mrpc: teacher 50.0, constant answer 0.0"


def on_rte(method, seed, dev, held, **more):
    """A row of a task without a test set."""
    return {"profile": "mini", "chapter": "05_knowledge_probes", "task": "rte", "method": method, "seed": seed,
            "dev_accuracy": dev, "best_dev_accuracy": dev + 0.1, "held_accuracy": held} | more


def test_replays_are_scored_on_rows_that_did_not_rank_them():
    """On RTE, which has no test set, that is held-out rows; the sequence that is best on dev is worst there."""
    first = [on_rte("Random-All", i, dev, 1 - dev, draw=i) for i, dev in enumerate((0.7, 0.6))]
    again = [on_rte("replay", 1000 + i, 0.7, held + i / 1000, draw=draw, was=was) for i in range(5)
             for draw, was, held in ((0, "best", 0.50), (1, "middle", 0.55))]
    data = measured(first + again)
    best, middle = luck_page.replayed(data).to_dict("records")
    assert (best["unseen rows"], best["first time, dev"], best["first time"]) == ("held-out", 70, pytest.approx(30))
    assert best["replayed, dev"].startswith("70.0") and best["replayed"].startswith("50.2")
    assert luck_page.stays_lucky(data, "rte")["effect"] == pytest.approx(-5)
    there = luck_page.replayed(measured([run("Random-All", 0, 0.5, draw=0), run("replay", 1000, 0.4, was="best",
                                                                                  draw=0)]))
    assert there["unseen rows"].tolist() == ["test"]


def test_the_papers_measure_is_of_no_epoch_that_f1_chose():
    """On MRPC the best epoch is F1's, and accuracy is read at the last one; on RTE both are accuracy's."""
    mrpc = run("Random-All", 0, 0.3, draw=0, dev_accuracy=0.75, best_dev_accuracy=0.684)
    data = measured([mrpc, on_rte("Random-All", 0, 0.6, 0.6, draw=0)])
    assert data["paper"].tolist() == pytest.approx([0.75, 0.70])
    assert luck_page.ranges(data)["best"].tolist() == pytest.approx([75, 70])


def test_the_other_depth_is_each_tasks_own():
    rows = [run("fixed-4L", s, 0.3, knowledge="FinK", layers=4) for s in range(2)]
    rows += [on_rte("fixed-2L", 0, 0.6, 0.6, knowledge="ResK", layers=2)]
    rows += [run("fixed", 0, 0.4, knowledge="FinK"), run("fixed-seed", 5, 0.4)]
    table = probes_page.fixed(measured(rows), deeper=True).set_index("knowledge")
    assert list(table) == ["mrpc, 4 layers", "rte, 2 layers"]
    assert table.loc["FinK"].tolist() == ["30.0 (2)", "–"]
    assert table.loc["ResK", "rte, 2 layers"] == "60.0 (1)" and len(table) == 2
    assert list(probes_page.fixed(measured(rows))) == ["knowledge", "mrpc"]
    assert probes_page.fixed(measured(rows[3:]), deeper=True).empty


def test_the_share_of_the_variance_that_selection_adds():
    """Seeds have a deviation of 3 points, selection adds one of 4: 16 of 25 parts of the variance."""
    rng = np.random.default_rng(2)
    values, null = pd.Series(rng.normal(0, 5, 400)), pd.Series(rng.normal(0, 3, 400))
    found = luck_page.beyond(values, null)
    assert found["low"] < 64 < found["high"] and found["high"] - found["low"] < 20 and found["n"] == 400
    same = luck_page.beyond(null[:50], null[50:100])
    assert same["low"] < 0 < same["high"]
    few = luck_page.beyond(values[:9], null[:9])
    assert np.isnan(few["effect"]) and few["n"] == 9
    rows = [run(method, i, x / 100) for method, some in (("Random-All", values), ("fixed-seed", null))
            for i, x in enumerate(some)]
    shown = luck_page.spreads(measured(rows))["variance from selection, %"]
    assert shown.iloc[0] == f"{found['effect']:.0f} [{found['low']:.0f}, {found['high']:.0f}]"


def replays_of(between, common, noise, count, seeds=5):
    """Replays of `count` sequences whose scores, in points, vary with the sequence, the seed and at random."""
    rng = np.random.default_rng(3)
    sequence, seed = rng.normal(0, between, count), rng.normal(0, common, seeds)
    return measured([run("replay", 1000 + j, 0.5 + (sequence[i] + seed[j] + rng.normal(0, noise)) / 100, draw=i,
                         was="best") for i in range(count) for j in range(seeds)])


def test_sequences_and_seeds_share_the_variance_of_replays():
    """9 parts of the variance are the sequence's, 4 the seed's (common to all sequences), 12 are chance."""
    (row,) = luck_page.sequences(replays_of(3, 2, 12**0.5, count=400, seeds=60)).to_dict("records")
    assert (row["sequences"], row["seeds"]) == (400, 60)
    assert row["sd between sequences"] == pytest.approx(3, rel=0.1)
    assert row["sd within one"] == pytest.approx(4, rel=0.1)
    effect, low, high = (float(x) for x in row["variance from sequences, %"].replace(",", "").replace("[", "")
                         .rstrip("]").split())
    assert low < 36 < high and effect == pytest.approx(36, abs=5)


def test_what_seeds_have_in_common_is_not_taken_for_a_difference_between_sequences():
    (row,) = luck_page.sequences(replays_of(0, 5, 1, count=6)).to_dict("records")
    assert row["sd between sequences"] < 1 and row["sd within one"] > 2
    assert luck_page.sequences(replays_of(0, 5, 1, count=6, seeds=1)).empty


def test_halves_are_compared_by_seed():
    """FeaK late is two points better, seed by seed; seeds are ten apart."""
    rows = []
    for s in range(5):
        for kind, late in (("FeaK", 0.02 + s % 2 / 1000), ("RelK", (s % 2 - 0.4) / 50)):
            rows += [run("early", s, 0.3 + s / 10, knowledge=kind), run("late", s, 0.3 + s / 10 + late, knowledge=kind)]
    rows += [run("fixed", s, 0.6, knowledge=probes_page.probes.ALL) for s in range(5)]
    data = measured(rows + [run("late", 0, 0.5, knowledge="FinK")])
    table = probes_page.halves(data).set_index("type")
    assert list(table.index) == ["FinK", "FeaK", "RelK"] and table.loc["FinK", "first half only"] == "–"
    shown = table.loc["FeaK", ["first half only", "throughout", "late minus early"]]
    assert [cell[:4] for cell in shown] == ["50.0", "60.0", "+2.0"]
    assert probes_page.halves_that_differ(data).startswith("of the 2 differences in the last column that have five")
    assert probes_page.halves_that_differ(data[:2]) == ""
    assert probes_page.heads(data).empty and probes_page.heads_in_words(data) == ""
    assert probes_page.halves(measured([run("fixed", 0, 0.5)])).empty


def test_a_student_under_the_teachers_head_may_give_the_constant_answer():
    rows = [run("fixed", 0, 0.2, knowledge="RelK"), run("fixed", 0, 0.1, knowledge="FeaK")]
    rows += [run("teacher-head", s, score, knowledge=kind) for kind, score in (("FeaK", 0.45), ("RelK", 0.0))
             for s in range(2)]
    data = measured(rows)
    shown = probes_page.heads(data).set_index("knowledge")
    assert shown.loc["RelK"].tolist() == ["mrpc", "20.0 (1)", "0.0 (2)", "0.0"]
    feature, relation = probes_page.heads_in_words(data).split("; ")
    assert feature.endswith("scores 45.0 on mrpc (the teacher 50.0)")
    assert relation.endswith("which in 2 of 2 runs is exactly the constant answer")


def test_magnitudes_are_means_over_runs_and_shares_of_their_sum():
    sizes = {"FinK": (3.0, 1.0), "ResK": (1.0, 0.5), "FeaK": (0.0, 0.0), "RelK": (0.0, 0.0)}
    rows = [run("fixed", s, 0.3, knowledge=probes_page.probes.ALL)
            | {f"extra_sizes_{kind}": [first + s, last] for kind, (first, last) in sizes.items()} for s in (0, 2)]
    table = probes_page.magnitudes(measured([*rows, run("fixed", 0, 0.3, knowledge="FinK")])).set_index("type")
    assert table["first steps"].tolist() == ["4.0", "2.0", "1.0", "1.0"] and table.loc["FinK", "last steps"] == "1.0"
    assert table.loc["FinK", "share at the start"] == "0.50"
    sizes = [probes_page.size(value) for value in (12, 0.7, 0.0394, 0.00123, 1.96e-7, 0)]
    assert sizes == ["12", "0.70", "0.039", "0.0012", "2.0 × 10⁻⁷", "0.0"]
    assert probes_page.magnitudes(measured(rows[:1]).query("method == 'replay'")).empty


def test_slopes_over_the_whole_of_training_and_what_the_shares_explain():
    data = draws(60, lambda s, rng: 0.3 + 0.10 * s["FinK"][0] - 0.20 * s["RelK"][2] + rng.normal(0, 0.002))
    table = probes_page.whole(data).set_index("type")
    assert list(table.index) == list(TYPES) and table.loc["RelK", "one step in ten more"].startswith("−")
    part = probes_page.explained(data, "mrpc")
    explains = f"on mrpc adjusted R² is {part:.2f}: the twelve shares explain {100 * part:.0f} % of the variance"
    assert probes_page.explained_in_words(data).startswith(explains)
    noise = draws(20, lambda s, rng: rng.normal(0.3, 0.02), seed=1)
    assert probes_page.explained(noise, "mrpc") < 0
    told = probes_page.explained_in_words(noise)
    assert told.startswith("on mrpc adjusted R² is −0.") and told.endswith("explain nothing beyond chance")
    assert probes_page.whole(data[:3]).empty and probes_page.explained_in_words(data[:3]) == ""


def test_readers_see_names_and_no_empty_tables(capsys, monkeypatch):
    assert tables.readable("mrpc matthews, mnli-mm f1; mnli-m") == "MRPC Matthews, MNLI-mm F1; MNLI-m"
    shown = []
    monkeypatch.setattr(figures, "display", shown.append)
    monkeypatch.setattr(tables, "display", lambda text: shown.append(text.data))
    figures.table(pd.DataFrame({"sst2 accuracy": ["on rte"]}), "On mrpc.")
    assert shown[0].data.to_dict("list") == {"SST-2 accuracy": ["on RTE"]} and shown[0].caption == "On MRPC."
    figures.table(pd.DataFrame(), "Nothing.")
    tables.conclude("")
    tables.conclude("on sst2 it holds")
    assert shown[1:] == ["Here: on SST-2 it holds."] and capsys.readouterr().out == "No runs yet for: Nothing.\n"


def test_columns_in_which_nothing_can_be_compared_are_left_out():
    table = pd.DataFrame({"x": ["a", "b"], "two": ["1", "2"], "one": ["1", "–"], "none": ["–", "–"]})
    assert list(tables.compared(table, "x")) == ["x", "two"]
    assert list(tables.compared(table[["x", "one", "none"]], "x")) == ["x", "one"]


def test_wider_is_judged_as_the_claims_are():
    rng = np.random.default_rng(1)
    rows = [run("Random-All", i, s) for i, s in enumerate(rng.normal(0.3, 0.05, 50))]
    rows += [run("fixed-seed", i + 5, s) for i, s in enumerate(rng.normal(0.3, 0.01, 50))]
    data = measured(rows)
    assert judged(data, "05_knowledge_probes", "mini").loc["probes-random-all-wider", "verdict"] == "holds"
    assert float(luck_page.spreads(data)["further from the median"].iloc[0][1:4]) > 2


# ------------------------------------------------------------------------------------------------------------------- 06


def selectors(**variants):
    """Five seeds of every method, each with a mean of its own and noise that sums to zero, and variants of soft KSM."""
    rows = [run(name, seed, 0.30 + i / 100 + ((2 * seed + 3 * i) % 5 - 2) / 1000, chapter="06_ksm",
                episodes=3.0 if "KSM" in name else None)
            for i, name in enumerate(ksm_page.METHODS) for seed in range(5)]
    return measured(rows + [row for some in variants.values() for row in some], ksm_page)


def test_variants_stay_out_of_the_main_comparison():
    variants = [run("KSM-soft", s, 0.9, chapter="06_ksm", exploration=False, episodes=3.0) for s in range(5)]
    data = selectors(some=variants)
    assert [len(ksm_page.of(data, "KSM-soft", "mrpc", **change)) for change in ({}, {"exploration": False})] == [5, 5]
    found = ksm_page.against(data)["mrpc"]
    assert found["hard KSM"]["effect"] == pytest.approx(1.0) and found["vanilla KD"]["effect"] == pytest.approx(8.0)
    assert found["constant"]["n"] == 5 and found["tuned constant"]["effect"] == pytest.approx(2.0)
    (row,) = ksm_page.ablations(data).to_dict("records")
    assert row == {"soft KSM minus the same": "without the exploration reward", "mrpc": "−51.0 ± 0.2 (5)"}
    verdicts = judged(data, "06_ksm", "mini")["verdict"]
    assert verdicts["ksm-beats-constant"] == verdicts["ksm-beats-tuned-constant"] == "holds"


def test_a_difference_is_shown_on_the_tasks_that_have_it():
    data = selectors(sst2=[on_sst2(m, s, 0.8) for m in ("KSM-soft", "PKD") for s in range(5)])
    found = ksm_page.against(data)
    assert list(found) == ["mrpc", "sst2"] and list(found["sst2"]) == ["PKD"] and len(found["mrpc"]) == 9
    assert ksm_page.against(measured([run("PKD", 0, 0.3)], ksm_page)) == {} and ksm_page.where({}) == "–"
    assert ksm_page.where({"a": "MRPC", "b": "MRPC"}) == "MRPC"
    assert ksm_page.where({"a": "MRPC", "b": "MRPC, SST-2"}) == "MRPC (from a); MRPC, SST-2 (from b)"


def test_what_random_actions_gain_without_an_actor():
    rows = [run(method, s, score + s / 100, best_dev_f1=0.81 + s / 100) for s in range(5)
            for method, score in (("Random-Soft", 0.32 + s % 2 / 1000), ("vanilla-KD", 0.26))]
    told = ksm_page.untrained(measured(rows, ksm_page))
    assert told.startswith("on mrpc Random-Soft less vanilla KD is +6.0 ± 0.1 (5) points of matthews and, by the "
                           "paper's measure, 0.0 (5) of f1; it has no actor")
    assert ksm_page.untrained(measured(rows[:6], ksm_page)) == "", "three seeds"


def test_the_main_table_ends_with_the_teacher_and_a_constant_answer():
    table = ksm_page.rebuilt(selectors()).set_index("method")
    assert list(table.index) == [*map(ksm_page.called, ksm_page.METHODS), "teacher", "constant answer"]
    assert table.loc["fine-tuning", "mrpc matthews"].startswith("30.0")
    assert table.loc["teacher", "mrpc matthews"] == "50.0"


def on_sst2(method, seed, score, **more):
    return run(method, seed, score, task="sst2", chapter="06_ksm", test_accuracy=score, dev_accuracy=score,
               best_dev_accuracy=score + 0.1, episodes=3.0 if "KSM" in method else None) | more


def test_the_papers_metrics_of_a_task_and_no_others():
    """MRPC's accuracy is the last epoch's; SST-2's F1 is not printed; a task with one method is left out."""
    rows = [on_sst2(m, 0, 0.8) for m in ("PKD", "finetune")] + [run("PKD", 0, 0.3, best_dev_accuracy=0.6)]
    columns = ["papers_accuracy", "papers_f1"]
    table = ksm_page.rebuilt(measured(rows, ksm_page), columns)
    assert list(table) == ["method", "sst2 accuracy"] and table["sst2 accuracy"].tolist() == ["90.0 (1)"] * 2
    rows += [run("finetune", 0, 0.4)]
    table = ksm_page.rebuilt(measured(rows, ksm_page), columns).set_index("method")
    assert table.loc["PKD", ["mrpc accuracy", "mrpc f1"]].tolist() == ["30.0 (1)", "30.0 (1)"]


def test_students_of_the_other_depth_are_told_by_their_layers():
    rows = [on_sst2(m, 0, 0.8) for m in ("PKD", "KSM-soft")]
    data = measured([*rows, *(on_sst2(f"{m}-2L", 0, 0.7, layers=2) for m in ("PKD", "KSM-soft"))], ksm_page)
    assert ksm_page.other(data, "sst2") == 2 and ksm_page.other(data[:2], "sst2") is None
    deeper = ksm_page.rebuilt(data, deeper=True)
    assert deeper.to_dict("list") == {"method": ["PKD", "soft KSM"], "sst2, 2 layers": ["70.0 (1)"] * 2}
    assert ksm_page.rebuilt(data[:2], deeper=True).empty
    assert ksm_page.at_another_depth(data) == ""  # PKD is none of the three
    rival = on_sst2("vanilla-KD-2L", 0, 0.65, layers=2)
    both = measured([*rows, on_sst2("KSM-soft-2L", 0, 0.7, layers=2), rival], ksm_page)
    told = "on sst2 with 2 layers soft KSM gains, in points, +5.0 (1) over vanilla KD"
    assert ksm_page.at_another_depth(both) == told


def test_what_a_large_exploration_reward_makes_of_actions():
    rows = [on_sst2("KSM-soft", s, score + s / 100, extra_mean_action=[action] * 4, **more) for s in range(5)
            for score, action, more in ((0.8, 0.5, {}), (0.81, 0.004, {"proportion": True}),
                                        (0.79, 0.6, {"exploration": False}))]
    said = ksm_page.explored(measured(rows, ksm_page))
    assert "mean action is 0.004 with the large exploration reward and 0.50 with the default's" in said
    assert "gain +1.0 (5) points over the default and +2.0 (5) points over no exploration reward" in said
    assert ksm_page.explored(measured(rows[:1], ksm_page)) == ""


def test_what_small_weights_and_unclipped_gradients_gain():
    rows = [on_sst2(method, s, score * (1 + s / 100), **more) for s in range(5)
            for method, score, more in (("KSM-soft", 0.81, {"proportion": True}), ("shrunk", 0.80, {}),
                                        ("shrunk", 0.78, {"largest": 1.0}),
                                        ("shrunk", 0.79, {"largest": 1.0, "clip": False}))]
    data = measured(rows, ksm_page)
    assert ksm_page.shrunk(data)["sst2 accuracy"].str[:4].tolist() == ["82.6", "81.6", "79.6", "80.6"]
    said = ksm_page.clipping(data)
    gains = ["+1.0 ± 0.0 (5) points for choosing", "+2.0 ± 0.0 (5) points for the small constant",
             "+1.0 ± 0.0 (5) points for never clipping"]
    assert [gain for gain in gains if gain in said] == gains
    assert ksm_page.shrunk(data[:1]).empty and ksm_page.clipping(data[:1]) == ""


def test_a_foreign_selector_is_compared_seed_by_seed():
    rows = [on_sst2(m, s, score + s % 2 / 50, source=source) for s in range(5)
            for m, score, source in (("KSM-soft", 0.8, None), ("transfer", 0.7, "seed"), ("transfer", 0.6, "task"))]
    rows += [on_sst2("transfer", 5, 0.9, source="seed"), on_sst2("transfer-2L", 0, 0.5, source="depth", layers=2)]
    data = measured(rows, ksm_page)
    usual = ["its own", "the next seed's", "mrpc's"]
    shown = ksm_page.transfers(data)
    assert shown["selector"].tolist() == [*usual, "its own, 2 layers", "the usual depth's, 2 layers"]
    assert shown["score"].tolist()[3:] == ["–", "50.0 (1)"], "nobody compares students of different depth"
    alone = [*rows[:-1], on_sst2("KSM-soft-2L", 0, 0.6, layers=2)]
    assert ksm_page.transfers(measured(alone, ksm_page))["selector"].tolist() == usual
    assert "by −10.0 (5) points" in ksm_page.foreign(data) and ksm_page.foreign(data[:1]) == ""


def stage_one(seed, rewards, **change):
    episodes = [{"quality": -1.0 - i, "rewards": some} for i, some in enumerate(rewards)]
    return on_sst2("KSM-soft", seed, 0.8 + seed / 100, extra_episodes=episodes, **change)


def test_episodes_and_rewards_of_stage_one():
    data = measured([stage_one(0, [[0.2, 0.4], [0.0, 0.6]]), stage_one(0, [[0.0, -0.1]], reward="accuracy")], ksm_page)
    each = ksm_page.episodes(data)
    assert each[["episode", "nll"]].to_numpy().tolist() == [[1, 1.0], [2, 2.0]]
    table = ksm_page.rewards(data).set_index("reward")
    assert table.loc["loss", "mean / deviation"] == pytest.approx(0.3 / np.std([0.2, 0.4, 0, 0.6]))
    assert table[["above zero, %", "exactly zero, %"]].to_numpy().tolist() == [["75", "25"], ["0", "50"]]
    assert table["phases"].tolist() == [4, 2]
    assert ksm_page.steadiness(data).startswith("on sst2 the reward from loss is the steadiest")
    assert ksm_page.deviation(data, phase=2)["sst2"] == pytest.approx(np.std([0.2, 0.4, 0, 0.6]) / 2)
    assert "0.1118 on average, so that exploration weighs about 10 times less" in ksm_page.proportion(data, phase=2)
    empty = measured([on_sst2("PKD", 0, 0.8)], ksm_page)
    assert ksm_page.episodes(empty).empty and ksm_page.steadiness(empty) == ksm_page.proportion(empty, 32) == ""


def test_thresholds_tell_whether_hard_actions_select():
    rows = [on_sst2(method, 0, 0.8, threshold=threshold, extra_mean_action=action, extra_skipped=5, extra_steps=50)
            for method, threshold, action in (("KSM-hard", None, [1, 1, 1, 0.9]), ("KSM-threshold", 0.3, [1, 0, 0, 0]))]
    data = measured(rows, ksm_page)
    table = ksm_page.thresholds(data)
    assert table["threshold"].tolist() == ["0.2", "0.3"] and table["types a step"].tolist() == [3.9, 1.0]
    assert table["empty steps, %"].tolist() == [10, 10]
    assert "3.9 of the 4 types" in ksm_page.selective(table) and "constant" not in ksm_page.selective(table)
    assert ksm_page.selective(table[:1]).endswith("one about a constant") and ksm_page.selective(table[:0]) == ""


def test_actions_move_within_a_run_or_between_runs():
    """One answers to every batch, which the parts of training hide. Older records have no deviations."""
    means = [[0.5, 0.5, 0.5, 0.5], [0.5, 0.2, 0.5, 0.5], [0.5, 0.6, 0.5, 0.5]]
    rows = [run("KSM-soft", s, 0.3, extra_actions=[mean] * 20, extra_mean_action=mean, episodes=3.0,
                extra_action_sd=[0.0 if s else 0.3, 0.0, 0.0, 0.0]) for s, mean in enumerate(means)]
    old = run("KSM-soft", 3, 0.3, extra_actions=[[0.9] * 4] * 20, extra_mean_action=[0.9] * 4, episodes=3.0)
    table = ksm_page.movement(measured([*rows, old], ksm_page)).set_index("type")
    assert table.loc["FinK", "within a run"] == pytest.approx(0.1) and table["n"].tolist() == [3] * 4
    assert table.loc["ResK", ["within a run", "mean action"]].tolist() == pytest.approx([0, 1.3 / 3])
    assert table.loc["ResK", "between runs"] == pytest.approx(np.std([0.5, 0.2, 0.6], ddof=1))
    assert table.loc["RelK", "between runs"] == 0
    assert ksm_page.movement(measured([old], ksm_page)).empty and ksm_page.mostly_within(table[:0]) == ""
    assert ksm_page.mostly_within(ksm_page.movement(measured(rows[:1], ksm_page))) == "", "one run"
    told = ksm_page.mostly_within(table.reset_index())
    assert told == ("on mrpc actions deviate by 0.00 to 0.10 within a run and by 0.00 to 0.21 between runs; the "
                    "deviation between runs is the larger one for 1 of the 4 types")
    assert len(ksm_page.actions(measured([old], ksm_page))) == 80


def test_what_selects_nothing_stands_beside_soft_ksm_over_rivals_with_other_losses():
    scores = {"KSM-soft": 0.33, "constant": 0.32, "Random-Soft": 0.34, "Dynamic-KD": 0.30, "PKD": 0.335}
    rows = [run(method, seed, value + seed / 100 + (2 * seed + 3 * i) % 5 / 1000)
            for i, (method, value) in enumerate(scores.items()) for seed in range(5)]
    data = measured(rows, ksm_page)
    table = ksm_page.unselective(data)
    assert table["points over"].tolist() == ["PKD", "Dynamic KD"], "vanilla KD has no runs"
    shown = [cell[:4] for cell in table.iloc[1][["soft KSM", "constant", "Random-Soft"]]]
    assert shown == ["+3.0", "+2.0", "+4.0"]
    assert ksm_page.without_an_actor(data) == (
        "on mrpc constant beats Dynamic KD, clear of zero; on mrpc Random-Soft beats PKD and Dynamic KD, clear of zero")
    few = measured([row for row in rows if row["seed"] < 3], ksm_page)
    assert len(ksm_page.unselective(few)) == 2 and ksm_page.without_an_actor(few) == "", "three seeds"
    assert ksm_page.unselective(measured(rows[:5], ksm_page)).empty


def test_lines_have_intervals_side_by_side():
    rows = [{"task": task, "method": method, "seed": seed, "episode": episode, "nll": episode + seed / 10}
            for task in ("mrpc", "sst2") for method in ("a", "b") for seed in range(3) for episode in (1, 2, 3)]
    fig = ksm_page.lines(pd.DataFrame(rows), "episode", "nll", "method", "episode", "cross-entropy")
    assert [ax.get_title() for ax in fig.axes] == ["MRPC (n = 3)", "SST-2 (n = 3)"]
    bars = [bar.lines[0].get_xdata()[0] for bar in fig.axes[0].containers]
    assert len(bars) == 6 and len(set(bars)) == 6 and [round(at) for at in bars] == [1, 2, 3] * 2
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["a", "b"]
    plt.close(fig)
    none = ksm_page.lines(pd.DataFrame(rows)[:0], "episode", "nll", "method", "episode", "cross-entropy")
    assert none.axes[0].texts[0].get_text() == "no runs yet"
    plt.close(none)


def test_trials_of_a_constant_show_the_weighting_that_is_taken():
    rows = [run("tune-constant", 900, 0.3, chapter="06_ksm", draw=i, held_matthews=h)
            for i, h in enumerate((0.2, 0.4, 0.4))]  # of equals the first, as in `experiments.common.best`
    table = ksm_page.trials(measured(rows[::-1], ksm_page))
    assert table[list(TYPES)].iloc[0].tolist() == [1.0] * 4 and table["held-out score"].tolist() == [20, 40, 40]
    assert table["taken"].tolist() == ["", "yes", ""]
    assert ksm_page.trials(selectors()).empty


def test_augmented_students_stand_beside_those_of_as_many_steps():
    rows = [run(f"vanilla-KD{kind}", s, score + s % 2 / 100, extra_steps=steps, copies=copies)
            for kind, score, steps, copies in (("", 0.30, 300, None), ("-repeated", 0.34, 900, 2.0),
                                               ("-augmented", 0.35, 900, 2.0)) for s in range(5)]
    table = ksm_page.augmented(measured(rows, ksm_page))
    assert table["steps"].tolist() == ["300", "900", "900"] and table["rows"].iloc[1] == "with copies, unchanged"
    assert [cell[:4] for cell in table["minus the task's, same seed"]] == ["–", "+4.0", "+5.0"]
    assert ksm_page.augmented(measured(rows[:5], ksm_page)).empty


def test_costs_are_both_stages_over_one_distillation():
    rows = [run("vanilla-KD", 0, 0.3, extra_train_seconds=10.0),
            run("KSM-soft", 0, 0.3, extra_ksm_seconds=45.0, extra_distil_seconds=15.0, extra_episodes_run=3)]
    (row,) = ksm_page.costs(measured(rows, ksm_page)).to_dict("records")
    assert row["times vanilla KD"] == pytest.approx(6.0) and row["episodes"] == "3"
    again = [*rows, run("KSM-soft", 1, 0.3, extra_ksm_seconds=45.0, extra_distil_seconds=15.0, extra_episodes_run=2)]
    assert ksm_page.costs(measured(again, ksm_page))["episodes"].tolist() == ["2.5"]


def test_every_claim_of_both_chapters_names_methods_that_are_planned():
    from kdutils import experiments

    for claim in claims.load()["claims"]:
        if claim["chapter"] not in ("05_knowledge_probes", "06_ksm"):
            continue
        specs = experiments.plan(claim["chapter"], "mini", "mrpc")
        for side in (claim["a"], claim["b"]):
            wanted = side.get("args", {})
            found = [s for s in specs if s.method == side["method"] and all(
                s.args.get(k) in (v if isinstance(v, list) else [v]) for k, v in wanted.items())]
            assert len({s.seed for s in found}) == len(found) >= claim["seeds"], claim["id"]


def test_times_of_packed_runs_are_shares_and_left_out():
    rows = [run("ResK", 0, 0.5, extra_train_seconds=60.0), run("ResK", 1, 0.5, extra_train_seconds=2.0, extra_packed=9)]
    assert measured(rows)["extra_train_seconds"].tolist() == pytest.approx([60.0, np.nan], nan_ok=True)


def test_a_task_with_few_seeds_is_shown_and_not_averaged_with_one_that_has_enough():
    many, few = pd.Series([1.0, 2, 3, 4, 5]), pd.Series([11.0])
    assert set(tables.pooled({"sst2": many, "mrpc": few})) == {"sst2", "mrpc"}
    both = tables.pooled({"sst2": many, "mrpc": many + 2})["all"]
    assert (both["effect"], both["n"]) == (4.0, 5)
    assert tables.pooled({"sst2": few, "mrpc": few + 2})["all"]["effect"] == 12.0
    assert tables.pooled({"sst2": many[:0]}) == {}
