"""Packs of runs: trained at once, they leave the records of separate runs. (Their sweeps: see test_sweep.)"""

import json
from dataclasses import replace

import pytest
import torch

from kdutils import bert, distil, dropout, experiments, pools, stacked
from kdutils.experiments import ksm, packing, peakd, probes, stark, stark_auto
from kdutils.records import Store

torch.set_num_threads(1)

FEW = {"rows": 80, "teacher_epochs": 1, "epochs": 2, "precision": "fp32"}  # the last batch of an epoch is a short one
TIMES = ("seconds", "created", "commit", "dirty")


def probe(method, seed, **args):
    return probes.make(probes.CHAPTER, "smoke", "synthetic", method, seed, **args)


GROUPS = {
    "probes": [probe("Random-All", 0, draw=0), probe("Random-One", 1, draw=1), probe("fixed", 0, knowledge="FinK&ResK"),
               probe("fixed-seed", 7), probe("tuning", 900, weights=(1.0, 1.0, 0.3, 0.1))],
    "KD": [stark.one("smoke", "synthetic", "KD", seed) for seed in (0, 1)],
    "STARK": [stark.sparse("smoke", "synthetic", *pair) for pair in ((0, 0.3), (1, 0.6))],
    "auto": [stark_auto.one("smoke", "synthetic", *pair) for pair in ((0,), (1,), (0, "dropped", "random"))],
    "pruned": [stark.one("smoke", "synthetic", "FT", seed, "pruned") for seed in (0, 1)],
    "SPS": [peakd.one("smoke", "synthetic", "SPS-2", seed) for seed in (0, 1)],
    "KSM": [ksm.make("smoke", "synthetic", method, 0) for method in ("Random-Soft", "Random-Hard")],
    "vanilla": [ksm.make("smoke", "synthetic", "vanilla-KD", seed) for seed in (0, 1)],
}


@pytest.fixture
def small(monkeypatch):
    """Makes specs small and training independent of dropout, whose masks depend on the pack."""
    for place in (bert, dropout):
        monkeypatch.setattr(place, "dropout", lambda x, p: x)
    return lambda specs, **more: [replace(spec, settings=spec.settings | FEW | more) for spec in specs]


@pytest.fixture(scope="module")
def separate(tmp_path_factory):
    """The folder of the runs that were made one at a time; it has the teacher for the packs as well."""
    return tmp_path_factory.mktemp("separate")


def attempt(specs, store, packed=None):
    """What a worker tells of a pack that it is given."""
    events = []
    packed = packed or pools.Packed(experiments.run_pack)
    pools._attempt(list(specs), experiments.run, packed, store, events.append)
    return {spec: (status, text) for spec, status, text in events}


def near(one, other):
    """Whether two parts of a record are the same to rounding, times aside."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return all(name.endswith("seconds") or near(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(near, one, other))
    return other == pytest.approx(one, abs=1e-3)


@pytest.mark.parametrize("name", GROUPS)
def test_packed_runs_leave_the_records_of_separate_ones(name, small, separate, tmp_path, monkeypatch):
    specs = small(GROUPS[name], epochs=10 if name == "KSM" else 2)
    assert experiments.packs(specs) == [specs]
    monkeypatch.setenv("KDUTILS_RUNS", str(separate))
    alone, together = Store(), Store(tmp_path, tmp_path / "published")
    for spec in specs:
        assert attempt([spec], alone) == {spec: ("done", "")}
    assert attempt(specs, together) == {spec: ("done", "") for spec in specs}
    assert not list((tmp_path / "leases").glob("*.json")) and len(list(tmp_path.glob("0*/*.json"))) == len(specs)
    for spec in specs:
        one, other = ({k: v for k, v in s.get(spec).items() if k not in TIMES} for s in (alone, together))
        assert other["extra"].pop("packed") == len(specs)
        assert near(one, other) and other["curve"] and other["metrics"]["dev"]


def test_out_of_memory_halves_a_pack_whose_parts_are_kept_as_they_end(small, separate, monkeypatch):
    monkeypatch.setenv("KDUTILS_RUNS", str(separate))
    specs, update, parts, steps = small(GROUPS["probes"]), stacked.Pack.update, [], []
    alone = [experiments.run(spec) for spec in specs]

    def full(self):
        steps.append(len(self.model.classifier.weight))
        if steps[-1] > 2 and len(steps) > 2:  # not at the first step: the objective has seen some
            raise torch.OutOfMemoryError("full")
        update(self)

    monkeypatch.setattr(stacked.Pack, "update", full)
    experiments.run_pack(specs, parts.append)
    assert [len(part) for part in parts] == [2, 2, 1]
    made = {spec: outcome for part in parts for spec, outcome in part.items()}
    assert [made[spec]["extra"].pop("packed") for spec in specs] == [2, 2, 2, 2, 1]
    assert all(near(one, made[spec]) for spec, one in zip(specs, alone, strict=True))


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_run_that_cannot_start_or_diverges_does_not_stop_its_pack(small, separate, monkeypatch, tmp_path):
    monkeypatch.setenv("KDUTILS_RUNS", str(separate))
    good, bad, lost = small([probe("Random-All", seed, draw=seed) for seed in (0, 1, 2)])
    student = probes.student

    def spoilt(spec, made):
        if spec == bad:
            raise RuntimeError("no such layer")
        learner = student(spec, made)
        if spec == lost:
            learner.classifier.weight.data.fill_(torch.inf)
        return learner

    monkeypatch.setattr(probes, "student", spoilt)
    store = Store(tmp_path, tmp_path / "published")
    found = attempt([bad, good, lost], store)
    assert found[good] == ("done", "") and store.get(good)["extra"]["packed"] == 2
    assert found[bad][0] == found[lost][0] == "failed" and store.get(bad) is store.get(lost) is None
    assert "RuntimeError: no such layer" in found[bad][1] and "FloatingPointError: loss: got" in found[lost][1]


def test_room_is_planned_for_a_run_that_goes_no_further(small, separate, monkeypatch):
    monkeypatch.setenv("KDUTILS_RUNS", str(separate))
    monkeypatch.setattr(distil, "train", None)
    spec = small(GROUPS["probes"])[0]
    experiments.common.bench(spec, states=True)
    assert experiments.room(spec) > 10


def test_a_run_that_asks_twice_is_no_pack(small, separate, monkeypatch):
    monkeypatch.setenv("KDUTILS_RUNS", str(separate))
    specs, made = small(GROUPS["probes"][:2]), {}

    def twice(spec):
        asked = yield from probes.stages(spec)
        yield asked

    packing.together([twice(spec) for spec in specs], made.update)
    assert len(made) == 2 and all("got a second distillation" in str(error) for error in made.values())


# Grouping


def test_groups_are_of_one_kind_and_in_the_order_of_their_first_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path))
    monkeypatch.setattr(stark, "chosen", lambda *_: 0.4)  # whatever is published: the plan goes on from there
    planned = {chapter: experiments.plan(chapter, "mini", "mrpc") for chapter in list(experiments.CHAPTERS)[2:]}
    groups = {chapter: experiments.packs(specs) for chapter, specs in planned.items()}
    for chapter, specs in planned.items():
        assert sorted(s.key for group in groups[chapter] for s in group) == sorted(s.key for s in specs)
        assert [group[0] for group in groups[chapter]] == sorted((g[0] for g in groups[chapter]), key=specs.index)
        for group in groups[chapter]:
            assert len({(s.task, json.dumps(s.settings)) for s in group}) == 1
    depths = [len(group) for group in groups["05_knowledge_probes"]]
    assert len(depths) == 2 and depths[0] > 600  # everything of a student's depth is one group
    methods = {tuple(sorted({s.method for s in group})) for group in groups["02_stark"] if len(group) > 1}
    assert methods == {("FT",), ("KD",), ("STARK",), ("STARK", "STARK-unstructured")}
    assert {s.method for group in groups["04_peakd"] if len(group) > 1 for s in group} == set(peakd.SPS)
    students = [{s.args["student"] for s in group} for group in groups["03_stark_auto"]]
    assert students == [{"dropped"}, {"pruned"}] and all(len(group) == 20 for group in groups["03_stark_auto"])
    assert experiments.packs([*planned["05_knowledge_probes"][:3], *planned["04_peakd"][:1]])[1:] == [
        planned["04_peakd"][:1]
    ]
