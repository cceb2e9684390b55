"""Every verdict rule on made-up records with known answers, the statistics against independent ones, and the pages."""

import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdutils import claims, experiments, figures, intervals, records, summary, verdicts
from kdutils.experiments.stark_baselines import OWN
from kdutils.pages import verdicts as verdict_page
from kdutils.records import TEACHER, Spec
from kdutils.store import Store

RNG = np.random.default_rng(0)
CLAIM = {"id": "c", "kind": "beats", "seeds": 10, "tasks": ["mrpc", "sst2"], "a": {"method": "A"}, "b": {"method": "B"}}
NONE = pd.DataFrame(columns=["chapter", "task", "method", "seed"])
METRIC = {"mrpc": "matthews", "sst2": "accuracy", "stsb": "spearman", "rte": "accuracy"}


def runs(method, task, values, split="test", seeds=None, **args):
    """Records as `records.frame` gives them: one a value, which is a fraction."""
    seeds = list(seeds or range(len(values)))
    return pd.DataFrame({"method": method, "task": task, "seed": seeds, f"{split}_{METRIC[task]}": values, **args})


def pair(task, differences, base=0.5, **more):
    """Runs of A and B on a task whose differences, in points, are the ones given."""
    noise = np.linspace(0, 0.1, len(differences))
    a = [base + x + d / 100 for x, d in zip(noise, differences, strict=True)]
    return pd.concat([runs("A", task, a, **more), runs("B", task, list(base + noise), **more)])


def judged(data, claim=CLAIM, profile="mini", **changes):
    rows = verdicts.judge(data, claim | changes, profile)
    return {row["task"]: row for row in rows}


# ---------------------------------------------------------------------------------------------- the rule
def test_holds_with_the_interval_of_a_paired_t_test():
    d = [1.0, 2.0, 1.5, 0.5, 2.5]
    row = judged(pair("mrpc", d))["mrpc"]
    expected = stats.ttest_1samp(d, 0)
    low, high = expected.confidence_interval(0.95)
    assert (row["verdict"], row["n"]) == ("holds", 5)
    assert [row[k] for k in ("effect", "low", "high", "p")] == pytest.approx([1.5, low, high, expected.pvalue])
    # by hand: sd = sqrt(2.5 / 4), t(4) = 2.776
    assert row["low"] == pytest.approx(1.5 - 2.776445 * np.sqrt(2.5 / 4) / np.sqrt(5), abs=1e-5)


def test_contradicted_and_undecided_by_interval():
    assert judged(pair("mrpc", [-1.0, -2.0, -1.5, -0.5, -2.5]))["pooled"]["verdict"] == "contradicted"
    assert judged(pair("mrpc", [-1.0, 2.0, -1.5, 0.5, 2.5]))["pooled"]["verdict"] == "undecided"


def test_an_interval_that_ends_at_the_null_decides_nothing():
    for low, high in ((-0.5, 1.0), (-2.0, -0.5)):
        assert verdicts.verdict({"n": 5, "low": low, "high": high}, -0.5) == "undecided"


def test_undecided_with_fewer_than_five_seeds_however_large_the_effect():
    rows = judged(pair("mrpc", [20.0, 20.1, 20.2, 19.9]))
    assert rows["mrpc"]["low"] > 0
    assert rows["mrpc"]["verdict"] == rows["pooled"]["verdict"] == "undecided"


def test_no_runs():
    for data in (NONE, pair("mrpc", [1.0] * 5).assign(method="other")):
        row = judged(data)["pooled"]
        assert (row["verdict"], row["n"]) == ("no runs yet", 0)


def test_only_seeds_that_both_sides_have_are_paired():
    data = pd.concat([runs("A", "mrpc", [0.9] * 6, seeds=range(6)), runs("B", "mrpc", [0.8] * 6, seeds=range(3, 9))])
    assert judged(data)["mrpc"]["n"] == 3


def test_a_profile_with_other_models_compares_those():
    other = {"at": {"paper": {"a": {"method": "B"}, "b": {"method": "A"}}}}
    effects = [judged(pair("mrpc", [1.0] * 5), profile=p, **other)["pooled"]["effect"] for p in ("mini", "paper")]
    assert effects == pytest.approx([1.0, -1.0])


def test_seeds_beyond_the_plan_are_not_used():
    d = [1.0, -1.0, 1.0, -1.0, 0.0] + [50.0] * 5
    row = judged(pair("mrpc", d), seeds=5)["mrpc"]
    assert (row["n"], row["effect"]) == (5, pytest.approx(0.0))


def test_pooled_averages_each_seeds_differences_over_the_tasks():
    one, two = [1.0, 3.0, 2.0, 2.5, 1.5], [-0.5, 0.5, 0.0, 1.0, -1.0]
    row = judged(pd.concat([pair("mrpc", one), pair("sst2", two)]))["pooled"]
    low, high = stats.ttest_1samp(np.mean([one, two], axis=0), 0).confidence_interval(0.95)
    assert row["tasks"] == ("mrpc", "sst2")
    assert [row["effect"], row["low"], row["high"]] == pytest.approx([1.0, low, high])


def test_a_task_with_few_seeds_and_one_outside_the_plan_stay_out_of_the_pool():
    data = pd.concat([pair("mrpc", [1.0, 1.1, 0.9, 1.2, 0.8]), pair("sst2", [-9.0] * 4), pair("stsb", [-9.0] * 5)])
    rows = judged(data)
    assert rows["pooled"]["tasks"] == ("mrpc",)
    assert rows["pooled"]["effect"] == pytest.approx(1.0)
    assert rows["stsb"]["verdict"] == "shown only"


def test_rte_is_shown_and_never_decides_at_mini():
    data = pair("rte", [5.0, 5.1, 4.9, 5.2, 4.8], split="dev")
    rows = judged(data, tasks=["rte", "mrpc"])
    assert (rows["rte"]["verdict"], rows["rte"]["n"], rows["pooled"]["n"]) == ("shown only", 5, 0)
    assert rows["pooled"]["verdict"] == "undecided"
    assert judged(data, tasks=["rte"], profile="paper")["pooled"]["verdict"] == "holds"


def test_reported_on_test_where_every_record_has_it_else_on_dev():
    data = runs("A", "mrpc", [0.7, 0.8]).assign(dev_matthews=[0.1, 0.2])
    assert verdicts.by_seed(data, verdicts.reported(data, "matthews")).tolist() == pytest.approx([70, 80])
    data.loc[1, "test_matthews"] = np.nan
    assert verdicts.by_seed(data, verdicts.reported(data, "matthews")).tolist() == pytest.approx([10, 20])
    with pytest.raises(ValueError, match="several of A mrpc seed 1; allowed: one a seed"):
        verdicts.by_seed(pd.concat([data, data.iloc[1:]]), "dev_matthews")


def test_both_sides_are_read_on_the_same_split():
    """Where one test score is missing on one side, dev less dev, and never test less dev."""
    data = pair("mrpc", [10.0, 11.0, 9.0, 10.0, 10.0]).assign(dev_matthews=0.3)
    data.loc[data["method"] == "A", "dev_matthews"] = 0.35
    data.loc[data.index[-1], "test_matthews"] = np.nan
    row = judged(data)["pooled"]
    assert (row["effect"], row["n"]) == (pytest.approx(5.0), 5)


def test_the_effect_is_also_given_in_the_papers_metric():
    """MRPC is judged by Matthews correlation; the papers print F1, in which the same runs lie closer together."""
    data = pd.concat([pair("mrpc", [8.0, 8.1, 7.9, 8.2, 7.8]), pair("sst2", [1.0, 1.1, 0.9, 1.2, 0.8])],
                     ignore_index=True)
    data.loc[data["task"] == "mrpc", "test_f1"] = 0.8 + 0.25 * data["test_matthews"]
    pooled = judged(data, tasks=["mrpc", "sst2"])["pooled"]
    assert (pooled["effect"], pooled["like_effect"]) == (pytest.approx(4.5), pytest.approx((2.0 + 1.0) / 2))
    by_hand = np.mean([np.array([8.0, 8.1, 7.9, 8.2, 7.8]) / 4, [1.0, 1.1, 0.9, 1.2, 0.8]], axis=0)  # a mean a seed
    assert (pooled["like_low"], pooled["like_high"]) == pytest.approx(
        stats.t.interval(0.95, 4, by_hand.mean(), stats.sem(by_hand)))
    data.loc[data["task"] == "mrpc", "test_accuracy"] = 0.7 + 0.5 * data["test_matthews"]  # what KSM's paper averages
    pooled = judged(data, tasks=["mrpc", "sst2"], papers_metric="accuracy")["pooled"]
    assert pooled["like_effect"] == pytest.approx((4.0 + 1.0) / 2)


def test_tasks_without_a_seed_in_common_are_undecided():
    """As when one half of a sweep ran one task's first seeds and the other half another task's last."""
    late = pair("sst2", [5.0, 5.1, 4.9, 5.2, 4.8])
    rows = judged(pd.concat([pair("mrpc", [5.0, 5.1, 4.9, 5.2, 4.8]), late.assign(seed=late["seed"] + 5)]),
                  tasks=["mrpc", "sst2"])
    assert (rows["mrpc"]["verdict"], rows["sst2"]["verdict"]) == ("holds", "holds")
    assert (rows["pooled"]["verdict"], rows["pooled"]["n"]) == ("undecided", 0)


def test_nearly_is_judged_against_the_margin():
    nearly = CLAIM | {"kind": "nearly", "margin": 0.5}
    close, far = [-0.1, 0.1, -0.2, 0.0, 0.3], [-1.0, -1.1, -0.9, -1.2, -0.8]
    assert judged(pair("mrpc", close))["pooled"]["verdict"] == "undecided"
    for row in judged(pair("mrpc", close), nearly).values():  # the task's and the pooled one
        assert row["verdict"] == "holds"
        assert row["p"] == pytest.approx(stats.ttest_1samp(close, -0.5).pvalue)
    assert judged(pair("mrpc", far), nearly)["pooled"]["verdict"] == "contradicted"
    assert judged(pair("mrpc", [-2.0, 1.0, -1.5, 0.9, -0.9]), nearly)["pooled"]["verdict"] == "undecided"


# ---------------------------------------------------------------------------------------------- choosing a sparsity
ARGS = {"profile": "demo", "student": "dropped", "base": "KD", "scores": "knowledgeable"}


def grid(task="mrpc", held=None, seeds=5, test=0.6):
    """STARK at two sparsities; `held` gives each one's mean held-out score."""
    rows = []
    for sparsity, mean in (held or {0.3: 0.7, 0.6: 0.6}).items():
        for seed in range(seeds):
            fixed = {"task": task, "seed": seed, f"held_{METRIC[task]}": mean + 0.01 * seed} | ARGS
            fixed |= {f"test_{METRIC[task]}": test + sparsity / 10 + 0.001 * seed}
            fixed[f"best_dev_{METRIC[task]}"] = mean if seed else 1 - mean
            rows.append(fixed | {"method": "STARK", "sparsity": sparsity})
    return pd.DataFrame(rows)


STARK = {"method": "STARK", "args": {"student": "dropped"}, "choose": "sparsity"}


def test_the_clean_protocol_chooses_one_sparsity_by_the_mean_held_out_score():
    rows = verdicts.side(grid(), STARK, "matthews", "clean")
    assert set(rows["sparsity"]) == {0.3} and len(rows) == 5


def test_the_choice_is_made_on_the_seeds_that_ran_the_whole_grid_and_reported_for_all():
    more = pd.DataFrame(
        [ARGS | {"method": "STARK", "task": "mrpc", "sparsity": 0.3, "seed": seed, "held_matthews": 0.0}
         for seed in range(5, 10)]
    )
    rows = verdicts.side(pd.concat([grid(), more]), STARK, "matthews", "clean")
    assert set(rows["sparsity"]) == {0.3} and len(rows) == 10


def test_half_a_grid_chooses_nothing():
    held = {round(s / 10, 1): 0.5 + 0.01 * (s == 4) for s in range(1, 10)}
    full = grid(held=held).assign(profile="mini")
    for protocol in ("clean", "paper"):
        assert len(verdicts.side(full, STARK, "matthews", protocol)) == 5
        assert verdicts.side(full[full["sparsity"] != 0.2], STARK, "matthews", protocol).empty
    begun = full[(full["sparsity"] < 0.8) | (full["seed"] < 2)]  # chosen on two seeds, reported for all that ran it
    assert set(verdicts.side(begun, STARK, "matthews", "clean")["sparsity"]) == {0.4}
    coarse = full[full["sparsity"].isin((0.1, 0.3, 0.5, 0.7))].assign(scores="random")
    assert len(verdicts.side(coarse, STARK, "matthews", "clean")) == 5  # random scores may choose from the coarse grid
    single = full[full["sparsity"] == 0.4].assign(scores="friendliness")  # planned where another grid chose
    assert len(verdicts.side(single, STARK, "matthews", "clean")) == 5


def test_a_better_grid_chooses_once_the_planned_seeds_have_run_it():
    coarse, rest = {0.1: 0.5, 0.3: 0.6, 0.5: 0.5, 0.7: 0.5}, {0.2: 0.5, 0.4: 0.5, 0.6: 0.5, 0.8: 0.5, 0.9: 0.7}
    first, more = (grid(held=held).assign(profile="mini", scores="random") for held in (coarse, rest))
    for seeds, best in ((0, 0.3), (1, 0.3), (4, 0.3), (5, 0.9)):
        found = verdicts.side(pd.concat([first, more[more["seed"] < seeds]]), STARK, "matthews", "clean")
        assert set(found["sparsity"]) == {best} and len(found) == 5


TAKD = {"method": "TAKD", "args": {"student": "dropped"}, "choose": "trials"}


def tried(best, score=0.6):
    """Trials of TAKD at mini in which the pair `best` won by `score`, and runs at the defaults and at that pair."""
    made = []
    for heat, weight in OWN:
        held = score if (heat, weight) == best else 0.5
        made.append({"method": "tune-TAKD", "seed": 100, "heat": heat, "weight": weight, "held_matthews": held})
    made += [{"method": "TAKD", "seed": seed, "test_matthews": 0.3} for seed in range(5)]
    made += [{"method": "tuned-TAKD", "seed": seed, "heat": best[0], "weight": best[1], "test_matthews": 0.4}
             for seed in range(5)]
    return pd.DataFrame([ARGS | {"profile": "mini", "task": "mrpc"} | row for row in made])


def test_a_method_stands_at_what_its_trials_chose():
    data = tried((0.5, 3.0))
    assert set(verdicts.side(data, TAKD, "matthews", "clean")["method"]) == {"tuned-TAKD"}
    assert set(verdicts.side(data.iloc[1:], TAKD, "matthews", "clean")["method"]) == {"TAKD"}  # a trial is missing
    assert set(verdicts.side(tried((1.0, 1.0)), TAKD, "matthews", "clean")["method"]) == {"TAKD"}
    assert set(verdicts.side(tried((0.5, 3.0), 0.5), TAKD, "matthews", "clean")["method"]) == {"TAKD"}  # all alike
    best, held = verdicts.own(data, TAKD, "matthews")
    assert best == (0.5, 3.0) and len(held) == 9 and held[1.0, 1.0] == 0.5


def test_what_claims_read_comes_headline_first():
    def spec(method, seed, task="mrpc", **args):
        return Spec("02_stark", task, method, "mini", seed, args, {})

    book = {"claims": [
        {"tasks": ["mrpc"], "seeds": 1, "a": {"method": "TAKD", "choose": "trials"}, "b": {"method": "KD"}},
        {"tasks": ["sst2", "mrpc"], "seeds": 2, "headline": True, "a": {"method": "STARK", "args": {"base": "KD"}},
         "b": {"method": "KD", "args": {"student": "dropped"}}, "at": {"paper": {"tasks": ["stsb"]}}},
    ]}
    kd = {(task, seed): spec("KD", seed, task, student="dropped") for task in ("mrpc", "sst2") for seed in range(3)}
    grid = [spec("STARK", seed, base="KD", sparsity=s) for s in (0.1, 0.2) for seed in (1, 0)]
    trials = [spec("tune-TAKD", 100), spec("TAKD", 0), spec("tuned-TAKD", 0), spec("TAKD", 1)]
    others = [spec("STARK", 0, base="PKD", sparsity=0.1), spec("KD", 0, "stsb", student="dropped")]
    found = verdicts.serving([*others, *trials, *kd.values(), *grid], book)
    assert found[:2] == [kd["sst2", 0], kd["sst2", 1]]  # the headline claim's tasks, in its order
    assert found[2:8] == [kd["mrpc", 0], grid[1], grid[3], kd["mrpc", 1], grid[0], grid[2]]
    assert set(found[8:]) == {trials[0], trials[1], trials[2]} and verdicts.serving([], book) == []
    late = [spec("fixed-seed", seed) for seed in range(5, 9)]  # seeds that begin above 0
    papers = spec("KD", 0, student="dropped", protocol="paper")  # what a clean claim does not read
    book["claims"][0] |= {"seeds": 3, "b": {"method": "fixed-seed"}}
    found = verdicts.serving([*late, papers, *kd.values()], book)
    assert set(late) & set(found) == set(late[:3]) and papers not in found
    large = [Spec("02_stark", task, "KD", "paper", 0, {"student": "dropped"}, {}) for task in ("sst2", "stsb")]
    assert verdicts.serving(large, book) == large[1:]  # a claim may have other tasks at another profile


def test_seeds_of_different_teachers_are_no_pairs():
    a = runs("A", "mrpc", [0.5, 0.6, 0.7, 0.8], **{TEACHER: ["x", "x", None, "y"]})
    b = runs("B", "mrpc", [0.4, 0.4, 0.4, 0.4], **{TEACHER: ["x", "y", None, "y"]})
    found = verdicts.differences(a, b, "test_matthews", "test_matthews")
    assert found.round(6).to_dict() == {0: 10.0, 2: 30.0, 3: 40.0}
    unnamed = [table.drop(columns=TEACHER) for table in (a, b)]
    assert len(verdicts.differences(*unnamed, "test_matthews", "test_matthews")) == 4


def test_seeds_of_two_teachers_are_told_apart(monkeypatch):
    about = {TEACHER: list("xxxxyyyz"), verdicts.DTYPE: ["bfloat16"] * 4 + ["float32"] * 4}
    a = [0.50, 0.52, 0.51, 0.53, 0.60, 0.62, 0.64, 0.9]
    data = pd.concat([runs("A", "mrpc", a, **about), runs("B", "mrpc", [0.5] * 8, **about)])
    first, other, last = (seeds["difference"].round(6) for seeds in verdicts.by_teacher(data, CLAIM, "mrpc"))
    assert list(first) == [0, 2, 1, 3] and list(other) == [10, 12, 14] and list(last) == [40]
    monkeypatch.setattr(verdict_page.published, "load", lambda: {"claims": [CLAIM | {"short": "A beats B"}]})
    (row,) = verdict_page.another_teacher(data, "mini").to_dict("records")  # one seed of a third says nothing
    test = stats.ttest_ind(first, other, equal_var=False)
    low, high = test.confidence_interval()
    assert row["p"] == pytest.approx(test.pvalue) and row["computed in"] == "float32"
    assert row["apart"] == f"−10.5 ± {(high - low) / 2:.1f}" and row["another"].startswith("+12.0 ± 5.0")
    assert verdict_page.another_teacher(data[data["seed"] < 6], "mini").empty
    assert verdict_page.another_teacher(data.drop(columns=TEACHER), "mini").empty


def test_the_same_runs_on_both_sides_decide_nothing():
    """As when two scores remove the same heads: not even that they are alike."""
    nearly = CLAIM | {"kind": "nearly", "margin": 0.5, "a": STARK, "b": STARK}
    for claim in (nearly, nearly | {"kind": "beats", "margin": 0.0}):
        row = judged(grid(), claim)["pooled"]
        assert (row["effect"], row["n"], row["verdict"]) == (0.0, 5, "undecided") and np.isnan(row["p"])


def test_a_claim_about_a_recorded_value_in_place_of_a_metric():
    values = {"extra_p": [0.30, 0.31, 0.29, 0.32, 0.30], "extra_q": [0.20, 0.22, 0.21, 0.20, 0.19]}
    data = runs("A", "mrpc", [0.5] * 5, **values)
    sides = {name: {"method": "A", "value": f"extra_{column}"} for name, column in (("a", "p"), ("b", "q"))}
    row = judged(data, CLAIM | sides)["pooled"]
    assert (row["effect"], row["verdict"]) == (pytest.approx(10.0), "holds")


def test_the_papers_protocol_chooses_for_each_seed_on_dev_and_reports_there():
    data = grid()
    rows = verdicts.side(data, STARK, "matthews", "paper").sort_values("seed")
    assert rows["sparsity"].tolist() == [0.6, 0.3, 0.3, 0.3, 0.3]  # seed 0 was best at another sparsity
    column = verdicts.reported(rows, "matthews", "paper")
    assert verdicts.by_seed(rows, column).tolist() == pytest.approx([40, 70, 70, 70, 70])


def test_the_records_of_the_other_protocol_are_left_out():
    data = grid().assign(protocol="clean")
    assert verdicts.side(data, STARK, "matthews", "paper").empty
    assert len(verdicts.side(data.drop(columns="protocol"), STARK, "matthews", "paper")) == 5


def test_two_chapters_methods_of_one_name_are_told_apart():
    ours, other = runs("PKD", "mrpc", [0.5] * 5), runs("PKD", "mrpc", [0.9] * 5)
    data = pd.concat([ours.assign(chapter="06_ksm"), other.assign(chapter="02_stark"), runs("A", "mrpc", [0.6] * 5)])
    claim = CLAIM | {"b": {"method": "PKD", "chapter": "06_ksm"}}
    assert judged(data, claim)["pooled"]["effect"] == pytest.approx(10.0)


def test_arguments_select_by_value_by_list_and_by_absence():
    args = {"lam": [0.5, np.nan, 0.25], "flag": [True, None, False], "text": ["a", None, "b"]}
    data = pd.DataFrame({"method": "M"} | args)

    def found(**args):
        return verdicts.select(data, {"method": "M", "args": args}).index.tolist()

    assert found(lam=0.1 + 0.4) == [0]
    assert found(lam=[None, 0.5]) == [0, 1]
    assert found(lam=None) == found(flag=None) == found(text=None) == [1]
    assert found(flag=True) == [0] and found(flag=False) == [2] and found(text=["a", "b"]) == [0, 2]
    assert found(unknown=None) == [0, 1, 2] and found(unknown=1) == []


# ---------------------------------------------------------------------------------------------- spread, correlation
def test_spread_is_the_brown_forsythe_test():
    a, b = RNG.normal(0, 3, 50), RNG.normal(0, 1, 40)
    estimate = intervals.spread(a, b)
    expected = stats.levene(a, b, center="median")
    assert estimate["p"] == pytest.approx(expected.pvalue, rel=1e-9)
    by_hand = np.mean(abs(a - np.median(a))) - np.mean(abs(b - np.median(b)))
    assert estimate["effect"] == pytest.approx(by_hand)
    assert (estimate["n"], estimate["low"] > 0) == (40, True)


def test_a_spread_claim_on_unpaired_runs_per_task_and_pooled():
    wide, narrow = RNG.normal(0.6, 0.05, 50), RNG.normal(0.6, 0.01, 50)
    wider = CLAIM | {"kind": "wider", "seeds": 50}
    data = pd.concat([runs(m, t, x) for t in ("mrpc", "sst2") for m, x in (("A", wide), ("B", narrow))])
    rows = judged(data, wider)
    assert rows["mrpc"]["verdict"] == rows["pooled"]["verdict"] == "holds"
    assert rows["pooled"]["effect"] == pytest.approx(rows["mrpc"]["effect"])
    # two equal tasks: the standard error shrinks by sqrt(2)
    width = [rows[t]["high"] - rows[t]["low"] for t in ("mrpc", "pooled")]
    assert width[1] / width[0] == pytest.approx(1 / np.sqrt(2), rel=0.02)
    swapped = judged(data, wider | {"a": {"method": "B"}, "b": {"method": "A"}})
    assert swapped["pooled"]["verdict"] == "contradicted"


def test_pooled_spreads_have_welchs_degrees_of_freedom():
    """The mean of two estimates is half the difference of two groups, one of them with its sign turned."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(1, 3, 5), rng.normal(2, 1, 8)
    found = intervals.pool_spreads([intervals.paired(values) | {"df": len(values) - 1} for values in (x, y)])
    welch = stats.ttest_ind(x, -y, equal_var=False)
    low, high = welch.confidence_interval()
    assert [found[k] for k in ("low", "high", "p", "n")] == pytest.approx([low / 2, high / 2, welch.pvalue, 5])


def test_a_spread_claim_reads_runs_of_one_teacher():
    """A second teacher's runs, twenty points higher, would widen side A alone."""
    a, b = RNG.normal(0.6, 0.01, 60), RNG.normal(0.6, 0.01, 60)
    a[40:50] += 0.2
    teachers = ["x"] * 40 + ["y"] * 10 + ["x"] * 10
    data = pd.concat([runs("A", "mrpc", a, **{TEACHER: teachers}), runs("B", "mrpc", b, **{TEACHER: ["x"] * 60})])
    spreads = [100 * np.abs(x - np.median(x)).mean() for x in (np.delete(a, range(40, 50)), b[:50])]
    for first in (data, data.iloc[40:]):  # it is the first seed's, wherever the records of that seed stand
        row = judged(pd.concat([first, data.iloc[: 120 - len(first)]]), kind="wider", seeds=50)["mrpc"]
        assert row["n"] == 50 and row["effect"] == pytest.approx(spreads[0] - spreads[1])


def test_a_correlation_claim_over_tasks_and_students():
    sparsities = {("mrpc", "dropped"): 0.3, ("mrpc", "pruned"): 0.6, ("sst2", "dropped"): 0.6, ("sst2", "pruned"): 0.3}
    sparsities |= {("stsb", "dropped"): 0.3, ("stsb", "pruned"): 0.6}
    peaks = [0.31, 0.62, 0.58, 0.33, 0.29, 0.61]
    parts = []
    for (task, student), best, peak in zip(sparsities, sparsities.values(), peaks, strict=True):
        held = {0.3: 0.6, 0.6: 0.6} | {best: 0.9}
        parts.append(grid(task, held).assign(student=student))
        parts.append(runs("Auto", task, [0.5] * 5, student=student, extra_sparsity=peak))
    few = {"student": "smaller", "extra_sparsity": 0.9}
    parts += [grid("mrpc").assign(student="smaller"), runs("Auto", "mrpc", [0.5] * 4, **few)]  # four seeds: no point
    b = {"method": "STARK", "choose": "sparsity"}
    claim = {"id": "r", "kind": "correlation", "seeds": 6, "tasks": ["mrpc", "sst2", "stsb"], "b": b}
    claim["a"] = {"method": "Auto", "value": "extra_sparsity"}
    (row,) = verdicts.judge(pd.concat(parts), claim, "mini")
    r = np.corrcoef(peaks, list(sparsities.values()))[0, 1]
    half = 1.959964 / np.sqrt(6 - 3)  # Fisher's z
    assert row["n"] == 6 and row["verdict"] == "holds"
    assert [row[k] for k in ("effect", "low", "high")] == pytest.approx(
        [r, np.tanh(np.arctanh(r) - half), np.tanh(np.arctanh(r) + half)]
    )
    assert intervals.correlation([1, 2, 3, 4], [1, 1, 1, 1])["n"] == 4
    assert np.isnan(intervals.correlation([1, 2, 3, 4], [1, 1, 1, 1])["effect"])


def test_a_correlation_within_groups_pays_for_their_means():
    """Its p-value is that of the slope in a regression with an intercept for each group; the interval widens."""
    x, noise, group = RNG.normal(size=12), RNG.normal(size=12), np.repeat(np.eye(3), 4, axis=0)
    design = np.column_stack([x, group])
    slopes, (left,), *_ = np.linalg.lstsq(design, noise, rcond=None)
    t = slopes[0] / np.sqrt(left / (12 - 4) * np.linalg.inv(design.T @ design)[0, 0])
    centred = [values - group @ (group.T @ values / 4) for values in (x, noise)]
    found, naive = intervals.correlation(*centred, groups=3), intervals.correlation(*centred)
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(t), 12 - 4)) and found["effect"] == naive["effect"]
    assert found["low"] < naive["low"] and found["high"] > naive["high"] and found["smallest"] > naive["smallest"]
    own = stats.pearsonr(x, noise)
    one = intervals.correlation(x, noise)
    assert (one["p"], one["low"], one["high"]) == pytest.approx((own.pvalue, *own.confidence_interval()))
    assert np.isnan(intervals.correlation(x[:5], noise[:5], groups=3)["effect"])
    many = np.arange(29)  # as many as find an r of 0.5 four times in five, by tables of power
    assert intervals.correlation(many, many % 5)["smallest"] == pytest.approx(0.5, abs=0.001)


# ---------------------------------------------------------------------------------------------- Holm and power
def closed_testing(p):
    """Holm by another road: the largest Bonferroni p over all intersections that hold the hypothesis."""
    sets = [s for k in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), k)]
    return [max(min(1, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(len(p))]


def test_holm_by_hand_and_by_closed_testing():
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    for _ in range(20):
        p = list(RNG.uniform(0, 0.3, 6))
        assert intervals.holm(p) == pytest.approx(closed_testing(p))


def test_holm_counts_claims_without_runs_in_the_family():
    adjusted = intervals.holm([0.01, np.nan, np.nan])
    assert adjusted[0] == pytest.approx(0.03) and np.isnan(adjusted[1:]).all()


def test_only_claims_that_can_be_decided_have_a_p_in_the_family(monkeypatch):
    """Four points have a p, but no verdict: it is nothing that Holm's correction may go through before others."""
    found = {"kd-beats-ft": (5, 0.001, "holds"), "auto-correlation": (4, 1e-9, "undecided")}

    def judge(data, claim, profile):
        n, p, said = found.get(claim["id"], (0, np.nan, "no runs yet"))
        return [{"claim": claim["id"], "task": "pooled", "verdict": said, "n": n, "p": p}]

    monkeypatch.setattr(verdicts, "judge", judge)
    table = verdicts.verdicts(NONE, "mini")[0].set_index("claim")
    assert table.loc["kd-beats-ft", "p_holm"] == pytest.approx(0.001 * len(table))
    assert set(table["p_holm"].dropna().index) == {"kd-beats-ft"}


@pytest.mark.parametrize(("n", "sd"), [(5, 2.0), (10, 1.0)])
def test_the_smallest_detectable_effect_is_found_four_times_in_five(n, sd):
    smallest = intervals.detectable(sd / np.sqrt(n), n - 1)
    draws = np.random.default_rng(1).normal(smallest, sd, (20_000, n))
    found = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_a_single_seed_has_an_effect_and_no_interval():
    row = intervals.paired([3.0])
    assert (row["effect"], row["n"]) == (3.0, 1) and np.isnan([row["low"], row["p"], row["smallest"]]).all()


# ---------------------------------------------------------------------------------------------- tables and pages
def test_all_claims_without_records_and_with_a_few():
    table, by_task = verdicts.verdicts(NONE, "mini")
    assert set(table["verdict"]) == {"no runs yet"} and by_task.empty
    assert len(table) == len(claims.load()["claims"])
    kd, ft = ([0.70, 0.71, 0.72, 0.70, 0.71], [0.68, 0.70, 0.70, 0.69, 0.69])
    data = pd.concat([runs(m, "mrpc", x, student="dropped") for m, x in (("KD", kd), ("FT", ft))])
    data["chapter"] = "02_stark"
    table, by_task = verdicts.verdicts(data, "mini")
    row = table.set_index("claim").loc["kd-beats-ft"]
    assert (row["verdict"], row["n"], row["planned"], row["after_holm"]) == ("holds", 5, 5, "undecided")
    assert row["p_holm"] == pytest.approx(min(1, row["p"] * len(table)))
    assert by_task["task"].tolist() == ["mrpc"]
    (alone,) = summary.apart(by_task, table).to_dict("records")
    assert [alone[k] for k in ("claim", "task", "n", "verdict")] == [
        f"{row['number']}. KD beats fine-tuning", "MRPC", "5/5", "holds"] and alone["ours"].startswith("+1.6\u00a0[")
    text = summary.shown(table).set_index("no.").loc[row["number"]]
    assert (text["paper"], text["n"], text["Holm"]) == ("+0.1", "5/5, 1 of 3 tasks", "no")
    assert text["chapter"] == "02_stark#beside-the-paper-s-table"
    assert text["ours"] == f"+1.6\u00a0[+{row['low']:.1f},\u00a0+{row['high']:.1f}]"


@pytest.mark.parametrize(("printed", "here", "said"), [
    (1.0, np.nan, "–"), (-1.0, -1.0, "no, ours larger"), (3.0, 1.0, "yes"), (1.0, 3.0, "no, ours smaller")])
def test_whether_our_interval_holds_the_papers_effect(printed, here, said):
    """That on the tasks that both have, and on no others."""
    row = pd.Series({"paper_effect": printed, "paper_here": here, "like_low": 0.5, "like_high": 2.0})
    assert summary.against_the_paper(row) == said
    row["like_low"] = np.nan
    assert summary.against_the_paper(row) == "–"


def test_numbers_in_text_have_a_true_minus_and_no_signed_zero():
    said = [figures.number(x, sign=True) for x in (1.25, -0.34, 0.04, -0.04, np.nan)]
    assert said == ["+1.2", "−0.3", "0.0", "0.0", "–"] and figures.number(-0.04) == "0.0"
    assert figures.number(-0.04, 2) == "−0.04"
    assert summary.interval(1.0, 0.0, 2.0) == "+1.0\u00a0[0.0,\u00a0+2.0]"
    assert summary.interval(1.0, -0.04, 2.0) == "+1.0\u00a0[−0.04,\u00a0+2.0]"  # a verdict hangs on its sign
    assert summary.interval(0.5, 0.004, 0.9, 2) == "+0.50\u00a0[+0.004,\u00a0+0.90]"
    assert summary.interval(1.0, np.nan, np.nan) == "+1.0"


def test_a_table_of_claims_in_three_columns_less():
    text = pd.DataFrame({"claim": "c", "verdict": ["holds", "undecided", "undecided"], "Holm": ["yes", "–", "–"],
                         "paper": ["+1.0", "+1.0", "–"], "same tasks": ["+0.8", "+1.0", "–"],
                         summary.LIKE: ["+2.0", "+0.9", "–"], summary.INSIDE: ["no, ours larger", "yes", "–"]})
    made = summary.merged(text)
    assert made.to_dict("list") == {
        "claim": ["c"] * 3, "verdict": ["holds\u00a0†", "undecided", "undecided"],
        "paper": ["+1.0 (+0.8)", "+1.0", "–"],
        summary.LIKE: ["+2.0; ours larger", "+0.9", "–"]}


def test_the_undecided_that_are_too_small_and_what_another_metric_would_decide():
    table = pd.DataFrame({"verdict": ["undecided"] * 3 + ["holds", "contradicted"], "n": 5, "null": [0, -1, 0, 0, 0],
                          "paper_here": [1.0, 0.1, np.nan, 9.0, 9.0], "like_low": [-0.5] * 5, "like_high": [0.5] * 5})
    assert summary.ruled_out(table) == (2, 1)
    assert summary.by_the_papers_metric(table) == (1, 1)  # the one with a margin, and the contradicted one
    table["like_low"] = np.nan
    assert summary.by_the_papers_metric(table) == (0, 0)


def test_what_a_task_alone_could_have_seen_is_counted_from_the_null():
    parts = pd.DataFrame([{"claim": "c", "task": "mrpc", "verdict": "holds", "n": 5, "planned": 5, "smallest": 1.3,
                           "effect": 0.0, "low": -0.4, "high": 0.4}])
    about = pd.DataFrame([{"claim": "c", "number": 3, "short": "nearly", "null": -0.5}])
    assert summary.apart(parts, about)["seen"].tolist() == ["0.8"]


def test_a_claim_says_on_how_many_of_its_tasks_it_was_judged():
    data = pair("mrpc", [8.0, 8.1, 7.9, 8.2, 7.8])
    row = judged(data, tasks=["mrpc", "sst2", "rte"])["pooled"]
    assert (row["tasks"], row["planned_tasks"]) == (("mrpc",), 2)  # RTE never decides
    assert summary.partial(pd.Series(row)) and not summary.partial(pd.Series(row | {"tasks": ("mrpc", "sst2")}))


def test_the_papers_metric_is_compared_on_the_tasks_that_the_paper_prints():
    """Pea-KD prints MRPC and SST-2, and no STS-B: what SPS gains there has nothing to be held against."""
    claim = {"paper_effect": {"difference": ["peakd-4/SPS-2/all average", "peakd-4/BERT3/all average"]}}
    data = pd.concat([pair("mrpc", [8.0, 8.1, 7.9, 8.2, 7.8]), pair("stsb", [20.0, 20.1, 19.9, 20.2, 19.8])],
                     ignore_index=True).assign(test_f1=lambda runs: 0.8 + 0.25 * runs["test_matthews"])
    row = judged(data, tasks=["mrpc", "stsb"], **claim)["pooled"]
    assert (row["tasks"], row["like_tasks"]) == (("mrpc", "stsb"), ("mrpc",))
    assert (row["effect"], row["like_effect"]) == (pytest.approx(14.0), pytest.approx(2.0))
    printed = [claims.cell(f"peakd-4/{name}/mrpc f1") for name in ("SPS-2", "BERT3")]
    assert row["paper_here"] == pytest.approx(printed[0] - printed[1])
    assert summary.some_tasks(row) == " on MRPC"
    row = judged(data, tasks=["stsb"], **claim)["pooled"]
    assert row["like_tasks"] == ("stsb",) and np.isnan(row["paper_here"]) and summary.some_tasks(row) == ""


def test_the_gap_between_teacher_and_student_stands_beside_the_papers():
    assert verdict_page.gaps(NONE).empty
    student = runs("KD", "sst2", [0.84, 0.82], split="dev", student="dropped", chapter="02_stark")
    student["extra_teacher_dev_accuracy"] = 0.86
    (row,) = verdict_page.gaps(student).to_dict("records")
    assert (row["task"], row["n"]) == ("SST-2, accuracy", 2)
    assert [row[k] for k in ("gap", "our teacher", "our gap")] == pytest.approx([93.8 - 89.6, 86.0, 3.0])


def test_a_page_table_links_to_the_chapter_and_an_empty_one_says_so(capsys):
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict_page, "display", lambda data, raw: shown.append(data["text/html"]))
        long = "05_knowledge_probes#is-all-knowledge-necessary"  # 40 characters and more, but no sentence
        two = pd.DataFrame({"effect": [-1.25, np.nan], "chapter": ["02_stark", long],
                            "claim": ["a", "one two " * 6 + "."]})
        verdict_page.show(two, "Two claims")
        verdict_page.show(pd.DataFrame(columns=["effect"]), "No claims")
    (html,) = shown
    assert '<td><a href="02_stark.html#the-result">02</a></td>' in html
    assert f'<td><a href="{long.replace("#", ".html#")}">05</a></td>' in html
    assert f'<td class="long">{"one two " * 6}.</td>' in html and "<td>a</td>" in html
    assert "<caption>Two claims.</caption>" in html
    assert '<td class="whole">−1.2</td>' in html and "<td>–</td>" in html
    assert capsys.readouterr().out == "No runs yet for: No claims\n"


def test_recorded_runs_are_counted_in_the_profiles_order():
    data = pd.DataFrame({"chapter": ["01_pilot"] * 3 + ["02_stark"], "task": ["stsb", "mrpc", "mrpc", "mrpc"]})
    table = verdict_page.recorded(data, "mini")
    assert table.to_dict("list") == {"chapter": ["01_pilot", "02_stark"], "MRPC": [2, 1], "STS-B": [1, 0]}


def test_what_is_missing_is_counted_by_chapter_and_task(monkeypatch, tmp_path):
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path))
    monkeypatch.setattr(experiments, "CHAPTERS", {"01_pilot": "pilot"})
    specs = [records.Spec("01_pilot", "synthetic", "finetune", "smoke", seed, {"layers": 1}, {}) for seed in (0, 1)]
    monkeypatch.setattr(experiments, "plan", lambda chapter, profile, task: specs)
    (row,) = verdict_page.missing("smoke").to_dict("records")
    assert (row["planned"], row["missing"]) == (2, 2)
    assert (row["chapter"], row["in commands"]) == ("01_pilot", "--task synthetic")
    for spec in specs:
        Store().put(spec, {"metrics": {}}, 1.0)
    assert verdict_page.missing("smoke").empty


def test_the_forest_plot_draws_every_claim_and_names_those_without_runs():
    sides = {"KD": [0.7] * 5, "FT": RNG.normal(0.6, 0.01, 5)}
    data = pd.concat([runs(m, "mrpc", x, student="dropped") for m, x in sides.items()])
    data["chapter"] = "02_stark"
    table, _ = verdicts.verdicts(data, "mini")
    figure = verdict_page.forest(table)
    labels = [text.get_text() for axis in figure.axes for text in axis.get_yticklabels()]
    assert sorted(labels) == sorted(table["short"] + "  " + table["number"].astype(str))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["STARK", "Pea-KD", "KSM", ""]
    said = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert said == ["no runs yet"] * (len(table) - 1)
    assert "holds: KD beats fine-tuning; no runs yet: Larger models score higher, " in verdict_page.in_words(table)

def test_the_front_pages_hold_the_summary_of_the_published_records():
    text = summary.summary("mini")
    for name in summary.FILES:
        page = (records.repository() / name).read_text(encoding="utf-8")
        held = page.partition(summary.BEGIN)[2].partition(summary.END)[0].strip()
        assert held == text, f"{name} is stale: run python -m kdutils.summary --write"


def test_the_summary_is_made_from_published_records_of_planned_runs_only(tmp_path, monkeypatch):
    def spec(method, seed):
        return records.Spec("02_stark", "mrpc", method, "mini", seed, {"student": "dropped"}, {})

    plan = [spec(method, seed) for method in ("KD", "FT") for seed in range(5)]
    monkeypatch.setattr(experiments, "CHAPTERS", {"02_stark": "stark"})
    monkeypatch.setattr(experiments, "plan", lambda chapter, profile, task="mrpc": plan if task == "mrpc" else [])
    before = summary.summary("mini")
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path))
    for one in [*plan, spec("KD", 5)]:  # the last is of an earlier plan
        Store().put(one, {"metrics": {"test": {"matthews": 0.6 + one.seed / 100}}}, 1.0)
    assert len(verdicts.results("mini")) == 10
    assert summary.summary("mini") == before


def test_writing_a_summary_touches_only_what_is_between_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"above\n{summary.BEGIN}\nold\n{summary.END}\nbelow\n")
    assert summary.write_summary(page, "new")
    assert page.read_text() == f"above\n{summary.BEGIN}\n\nnew\n{summary.END}\nbelow\n"
    assert not summary.write_summary(page, "new")
    page.write_text("no markers")
    with pytest.raises(ValueError, match=r"page.md: got no <!-- results:begin -->"):
        summary.write_summary(page, "new")


def test_verdicts_do_not_import_torch():
    code = "import sys, kdutils.summary as s; s.summary(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=records.repository()).returncode == 0
