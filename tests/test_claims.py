"""The papers' numbers: their averages, the cells that tables repeat, the checks that the book shows, and the claims."""

from collections import defaultdict

import numpy as np
import pandas as pd
import pytest

from kdutils import claims, experiments, profiles, tasks, verdicts

BOOK = claims.load()
TEN = {"auto-beats-kd", "pruned-beats-dropped"}  # no headlines, but both sides have the ten seeds of headline claims


def test_every_cell_becomes_one_row():
    rows = claims.published()
    assert len(rows) == sum(len(values) for table in BOOK["tables"].values() for values in table["rows"].values())
    assert not rows.duplicated(["table", "row", "task", "metric"]).any()
    assert set(rows["split"]) == {"dev", "test server", "train", "none"}
    one = rows.query("table == 'ksm-3' and row == 'KSM soft BERT6' and task == 'mrpc' and metric == 'f1'").iloc[0]
    assert (one["value"], one["split"], one["paper"]) == (87.9, "test server", "ksm")
    sparsity = rows.query("table == 'stark-main-pruned-sparsity' and task == 'qnli'").iloc[0]
    assert (sparsity["metric"], sparsity["value"]) == ("sparsity", 70)


def test_values_are_in_their_metrics_range():
    rows = claims.published().dropna(subset="value")
    scores = rows[rows["metric"].isin(["accuracy", "f1", "spearman", "average", "best", "worst"])]
    assert scores["value"].between(40, 100).loc[~scores["table"].str.endswith("sparsity")].all()
    assert rows[rows["metric"] == "sparsity"]["value"].between(0, 100).all()


def test_printed_averages_are_the_means_of_their_rows_but_for_three():
    table = claims.averages()
    assert len(table) >= 70
    odd = {(r.table, r.row): r.state for r in table.itertuples() if r.state != "agrees"}
    assert odd == {
        ("stark-scale-large-sparsity", "STARK8"): "differs",
        ("stark-auto", "STARK-AUTO4"): "rounding",
        ("peakd-2", "PeaBERT1"): "rounding",
    }


def test_sparsity_of_90_in_place_of_9_gives_the_printed_mean():
    row = claims.task_cells("stark-scale-large-sparsity/STARK8")
    assert round(np.where(row == 9, 90, row).mean()) == claims.cell("stark-scale-large-sparsity/STARK8/all average")


def test_rows_that_a_paper_prints_twice_agree():
    """BERT-base, KD4, PKD4, CKD4, STARK4 and SPS-2 stand in several tables."""
    seen = defaultdict(set)
    rows = claims.published().dropna(subset="value")
    for r in rows[rows["paper"] == "stark"].itertuples():
        if r.table in ("stark-main-dropped", "stark-plug", "stark-unstructured", "stark-auto"):
            seen["STARK4" if r.row == "KD4 w/ STARK" else r.row, r.task, r.metric].add(r.value)
    assert len(seen) > 90 and all(len(values) == 1 for values in seen.values())
    assert (claims.task_cells("peakd-4/SPS-2") == claims.task_cells("peakd-5/BERT3+SPS")).all()
    sparsities = ("stark-main-dropped-sparsity", "stark-auto-sparsity")
    assert (claims.task_cells(f"{sparsities[0]}/STARK4") == claims.task_cells(f"{sparsities[1]}/STARK4")).all()


def test_cells_that_copies_print_differently_use_the_first():
    rows = claims.published()
    marked = rows[rows["copies"].map(len) > 0]
    assert len(marked) == 10
    assert all(r.value == r.copies[0] for r in marked.itertuples())
    (base,) = marked[marked["row"] == "BERT-base"].itertuples()
    assert (base.task, base.copies) == ("sst2", (93.8, 92.8))


def test_the_list_of_inconsistencies_is_exactly_what_fails():
    table = claims.checks()
    assert not table["id"].duplicated().any()
    failing = set(table[table["state"] == "fails"]["id"])
    assert failing == {
        "stark-copies", "stark-large-sparsity", "stark-auto-average", "stark-30", "stark-best-of-grid",
        "stark-assumption-2", "peakd-average", "peakd-baseline", "papers-patient", "papers-teacher", "ksm-range",
        "ksm-margin", "ksm-augmented-finetune",
    }
    assert (table["state"] == "agrees").sum() >= 20


def test_every_average_that_disagrees_is_among_the_checks():
    shown = {entry["computed"]["mean"][0] for entry in BOOK["checks"] if "mean" in entry["computed"]}
    odd = claims.averages().query("state != 'agrees'")
    assert shown == set(odd["table"] + "/" + odd["row"])


def test_an_effect_on_some_of_a_papers_tasks_by_hand():
    average = {"difference": ["stark-main-dropped/STARK4/all average", "stark-main-dropped/KD4/all average"]}
    two = {"mrpc": "f1", "sst2": "accuracy"}
    assert claims.on_tasks(average, two) == pytest.approx((87.4 + 90.6) / 2 - (86.9 + 89.6) / 2)
    rows = {"difference": [["peakd-4/SPS-2"], ["peakd-4/BERT3"]]}
    one = claims.cell("peakd-4/SPS-2/mrpc f1") - claims.cell("peakd-4/BERT3/mrpc f1")
    assert claims.on_tasks(rows, {"mrpc": "f1"}) == pytest.approx(one)
    cells = {"difference": ["ksm-3/KSM soft BERT6/mrpc f1", "ksm-3/Dynamic KD BERT6/mrpc f1"]}
    assert claims.on_tasks(cells, {"mrpc": "f1"}) == pytest.approx(claims.evaluate(cells))
    missing = {"difference": ["stark-main-dropped/STARK4/all average", "stark-main-dropped/MetaKD4/all average"]}
    for formula, on in ((average, {"cola": "matthews"}), (cells, {"sst2": "accuracy"}), (average, {}), ({}, two),
                        (missing, {"qnli": "accuracy"})):
        assert np.isnan(claims.on_tasks(formula, on))


def test_formulas_by_hand():
    a, b = "ksm-2/Random-All/rte best", "ksm-2/Random-All/rte worst"
    assert claims.evaluate({"difference": [a, b]}) == pytest.approx(10.1)
    assert claims.evaluate({"mean": ["peakd-4/SPS-1"]}) == pytest.approx((63.5 + 85.8 + 89.6 + 85.5) / 4)
    assert claims.evaluate({"mean": ["peakd-4/SPS-1", a]}) == pytest.approx((63.5 + 85.8 + 89.6 + 85.5 + 68.4) / 5)
    share = claims.evaluate({"share": [a, b, a]})
    assert share == pytest.approx(1.0)
    auto, grid = [47, 51, 35, 46, 44, 42, 38, 38], [40, 50, 50, 50, 30, 60, 40, 50]
    r = claims.evaluate({"correlation": ["stark-auto-sparsity/STARK-AUTO4", "stark-auto-sparsity/STARK4"]})
    assert r == pytest.approx(np.corrcoef(auto, grid)[0, 1])


@pytest.mark.parametrize(("relation", "within"), [("equal", True), ("at least", True), ("at most", True),
                                                  ("above", False)])
def test_a_number_at_the_stated_one_is_at_least_and_at_most_that_and_not_above(relation, within):
    _, state = claims._compare(0.1 + 0.2, {relation: 0.3})
    assert state == ("agrees" if within else "fails")


@pytest.mark.parametrize(
    ("ref", "says"),
    [("ksm-9/a/b", "got table 'ksm-9'"), ("ksm-6/loss/cola f1", "'ksm-6/loss/cola f1'"), ("ksm-6/loss", "a row")],
)
def test_a_cell_that_is_not_there_is_named(ref, says):
    with pytest.raises(ValueError, match=says):
        claims.cell(ref)


def test_load_refuses_a_row_of_the_wrong_length_and_an_unknown_kind(tmp_path):
    table = "checks: []\nclaims: []\ntables: {t: {paper: p, table: T, split: dev, columns: [a b, c d], rows: {r: [1]}}}"
    claim = "{id: x, kind: likes, chapter: c, section: x, paper: p, short: t, sentence: s, "
    claim += "seeds: 5, a: {}, b: {}, tasks: [mrpc]}"
    claim = "checks: []\ntables: {}\nclaims: [" + claim + "]\n"
    cases = [(table, "t/r: got 1 values"), (claim, "x: kind: got 'likes'"), ("claims: []", "got no tables, checks"),
             (claim.replace("a: {}, ", ""), "claim 'x': got no a; allowed: id, "),
             (claim.replace("mrpc", "mrcp"), "task: got 'mrcp'")]
    for number, (text, says) in enumerate(cases):
        path = tmp_path / f"{number}.yml"
        path.write_text(text)
        with pytest.raises(ValueError, match=says):
            claims.load(path)


def test_claims_are_complete_and_planned_as_the_design_says():
    ids = [claim["id"] for claim in BOOK["claims"]]
    assert len(ids) == len(set(ids)) >= 30
    mini = profiles.profile("mini")
    for claim in BOOK["claims"]:
        needed = {"id", "paper", "chapter", "section", "short", "sentence", "kind", "seeds", "tasks", "a", "b"}
        assert needed <= set(claim)
        assert claim["paper"] in BOOK["papers"]
        assert not claim.get("paper_effect") or np.isfinite(claims.evaluate(claim["paper_effect"]))
        assert set(claim["tasks"]) <= set(mini.tasks) - {"rte"}
        assert ("margin" in claim) == (claim["kind"] == "nearly")
        assert not claim.get("headline") or claim["kind"] == "wider" or claim["seeds"] == mini.headline_seeds
        if claim["kind"] in ("beats", "nearly"):
            ten = claim["id"] in TEN or bool(claim.get("headline"))
            assert claim["seeds"] == (mini.headline_seeds if ten else mini.seeds), claim["id"]
        if claim.get("measure") == "confidence":
            assert not any(tasks.get(task).regression for task in claim["tasks"])
    assert sum(bool(claim.get("headline")) for claim in BOOK["claims"]) >= 8


def planned(profile):
    """What the chapters plan, one row a run, with its arguments as columns."""
    specs = [spec for chapter in experiments.CHAPTERS for spec in experiments.plan(chapter, profile)]
    return pd.DataFrame(
        {"chapter": s.chapter, "task": s.task, "method": s.method, "seed": s.seed, "profile": profile} | s.args
        for s in specs
    )


def test_every_claim_finds_its_runs_among_those_that_the_chapters_plan():
    """With as many seeds as the claim plans; what depends on a sparsity chosen from runs, at `smoke`."""
    guessed = planned("smoke")
    for profile in ("mini", "paper"):
        plans = pd.concat([planned(profile), guessed], ignore_index=True)
        for claim in BOOK["claims"]:
            claim = claim | claim.get("at", {}).get(profile, {})
            for side in (claim["a"], claim["b"]):
                found = verdicts.select(plans, side, protocol=[None, claim.get("protocol", "clean")])
                assert len(found), f"{claim['id']}: {side}"
                if "choose" in side or claim["kind"] == "correlation":
                    continue
                for task in claim["tasks"]:
                    seeds = found[(found["task"] == task) & (found["profile"] == profile)]["seed"]
                    assert seeds.is_unique and len(seeds) >= claim["seeds"], f"{claim['id']} {task}: {side}"
