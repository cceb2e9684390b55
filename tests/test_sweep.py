"""Sweeps over a fake chapter whose runs take milliseconds: the pools, their faults, and the command line."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdutils import experiments, pools, processes, profiles, sweep, wanted
from kdutils.experiments import choices, common
from kdutils.records import Spec, Store
from kdutils.sweep import run_sweep

ROOT = Path(__file__).resolve().parents[1]
TIMELY = ("seconds", "created", "device", "commit", "dirty")  # what two moments may differ in


def a_spec(seed, method="KD", task="synthetic", **args):
    return Spec("01_pilot", task, method, "smoke", seed, args, {})


def run(spec):
    """Note the attempt, then do what the arguments say; the outcome follows from the spec."""
    folder = Path(os.environ["KDUTILS_RUNS"]) / "attempts"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / spec.key, "a") as file:
        file.write(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    attempts = len((folder / spec.key).read_text().splitlines())
    if attempts <= spec.args.get("kills", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if attempts <= spec.args.get("errors", 0):
        raise RuntimeError("loss is nan")
    time.sleep(spec.args.get("sleep", 0))
    return {"metrics": {"dev": {"accuracy": int(spec.key, 16) / 16**16}}, "curve": [[1, spec.seed / 3]],
            "extra": {"torch": "torch" in sys.modules}}


@pytest.fixture
def here(tmp_path):
    return Store(tmp_path / "runs", tmp_path / "published")


def sweep_it(specs, store, **how):
    return run_sweep(specs, run=run, store=store, progress=False, **how)


def attempts(store, spec):
    return (store.runs / "attempts" / spec.key).read_text().splitlines()


def content(store):
    """The store without what depends on the moment."""
    found = store.records("01_pilot")
    return [{name: value for name, value in record.items() if name not in TIMELY} for record in found]


SPECS = [a_spec(seed, method) for method in ("KD", "STARK") for seed in range(6)]


# Running here


def test_one_worker_and_two_leave_the_same_store(tmp_path, capsys):
    stores = [Store(tmp_path / name, tmp_path / "published") for name in ("one", "two")]
    for workers, store in enumerate(stores, 1):
        swept = sweep_it(SPECS + SPECS[:3], store, workers=workers)
        assert set(swept.done) == set(SPECS) and not swept.failed and not swept.present
        pids = {line.split()[0] for spec in SPECS for line in attempts(store, spec)}
        assert len(pids) == workers and str(os.getpid()) not in pids
    assert content(stores[0]) == content(stores[1]) and len(content(stores[0])) == len(SPECS)
    lines = capsys.readouterr().out.splitlines()
    value = int(SPECS[0].key, 16) / 16**16
    assert re.fullmatch(rf"synthetic KD seed=0: dev accuracy {value:.4f}, \d+\.\d s", lines[0])
    again = sweep_it(SPECS, stores[0])
    assert again.present == SPECS and not again.done
    assert all(len(attempts(stores[0], spec)) == 1 for spec in SPECS)


def test_a_killed_worker_costs_one_run_and_is_tried_again(here, capsys):
    victim = a_spec(100, kills=1)
    swept = sweep_it([victim, *SPECS], here, workers=2)
    assert not swept.failed and len(content(here)) == len(SPECS) + 1
    assert len(attempts(here, victim)) == 2 and all(len(attempts(here, spec)) == 1 for spec in SPECS)
    assert "again: 01_pilot smoke synthetic KD kills=1 seed=100: its worker process ended with exit code -9" in (
        capsys.readouterr().out
    )


def test_a_run_that_always_kills_its_worker_fails_after_its_retries(here):
    victim = a_spec(100, kills=99)
    swept = sweep_it([victim, *SPECS[:3]], here, retries=1)
    assert swept.failed == [victim] and len(attempts(here, victim)) == 2
    assert set(swept.done) == set(SPECS[:3])
    assert "exit code -9" in (here.runs / "failures" / f"{victim.key}.txt").read_text()


def test_an_exception_is_one_line_and_the_sweep_goes_on(here, capsys):
    bad = a_spec(100, errors=1)
    swept = sweep_it([bad, *SPECS[:3]], here)
    assert swept.failed == [bad] and set(swept.done) == set(SPECS[:3]) and here.get(bad) is None
    assert len(attempts(here, bad)) == 1
    report = here.runs / "failures" / f"{bad.key}.txt"
    line = f"failed: {bad}: RuntimeError: loss is nan (failures/{report.name})"
    assert line in capsys.readouterr().out.splitlines()
    assert "Traceback" in report.read_text() and json.loads(report.read_text().splitlines()[1]) == asdict(bad)
    assert sweep_it([bad], here).done == [bad] and not report.exists()


def test_a_run_held_elsewhere_is_waited_for_but_nothing_else_is(here, monkeypatch):
    monkeypatch.setattr(pools, "POLL", 0.05)
    events = pools.local([[spec] for spec in SPECS[:3]], run, here, sweep.environments(1, [], 1, 1, here), 1, 0)
    with here.lease(SPECS[0]):
        assert [next(events)[0] for _ in range(2)] == SPECS[1:3]
        time.sleep(0.1)
        here.put(SPECS[0], {"metrics": {}}, 1.0)
    assert list(events) == [(SPECS[0], "done", "")]
    assert not (here.runs / "attempts" / SPECS[0].key).exists()


def test_threads_and_gpus_reach_the_workers_before_torch_does(here, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setattr(sweep, "gpus_here", lambda: ["3", "4", "5"])
    specs = [a_spec(seed, sleep=0.5) for seed in range(4)]
    sweep_it(specs, here, workers=4, gpus=["3", "5"])
    seen = [attempts(here, spec)[0].split()[1:] for spec in specs]
    assert sorted(seen) == [["3", "3"], ["3", "3"], ["3", "5"], ["3", "5"]]
    assert not any(here.get(spec)["extra"]["torch"] for spec in specs)
    sweep_it([a_spec(9)], here, threads=7, gpus=[])
    assert attempts(here, a_spec(9))[0].split()[1:] == ["7"]


@pytest.mark.parametrize(("per_gpu", "shares"), [(1, []), (3, [0.3])])
def test_processes_that_share_a_gpu_are_kept_to_their_share(monkeypatch, per_gpu, shares):
    given = []
    cuda = SimpleNamespace(is_available=lambda: True, set_per_process_memory_fraction=given.append)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    pools._cap_memory(per_gpu)
    assert given == pytest.approx(shares)


def test_places(here, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(sweep, "gpus_here", lambda: [])

    def threads(*arguments):
        return [place["OMP_NUM_THREADS"] for place in sweep.environments(*arguments, here)]

    assert threads(1, None, 1, None) == ["8"] and threads(3, None, 1, None) == ["2"] * 3
    assert [sweep.workers_of(text, None) for text in ("3", "auto")] == [3, 8]
    assert threads(16, None, 1, None) == ["1"] * 16 and threads(2, None, 1, 5) == ["5"] * 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
    assert sweep.workers_of("auto", None) == sweep.MOST
    monkeypatch.setattr(sweep, "gpus_here", lambda: ["0", "1"])
    assert [sweep.workers_of("auto", gpus) for gpus in (None, ["0"], [])] == [1, 1, sweep.MOST]
    assert [p["CUDA_VISIBLE_DEVICES"] for p in sweep.environments(3, None, 1, 1, here)] == ["0", "1", "0"]
    assert [p["CUDA_VISIBLE_DEVICES"] for p in sweep.environments(1, None, 2, 1, here)] == ["0", "1"] * 2


@pytest.mark.parametrize(("here_are", "allowed"), [([], "none"), (["0", "2"], "0, 2")])
def test_gpus_that_are_not_here_are_refused(here, monkeypatch, here_are, allowed):
    monkeypatch.setattr(sweep, "gpus_here", lambda: here_are)
    with pytest.raises(ValueError) as error:
        sweep_it(SPECS, here, gpus=["1", "7"])
    assert str(error.value) == f"gpus: got 1, 7; allowed: {allowed} (of this machine)" and not here.runs.exists()
    assert sweep.environments(1, here_are, 1, 1, here)[0]["CUDA_VISIBLE_DEVICES"] == "".join(here_are[:1])


def test_on_a_terminal_each_worker_has_a_line_for_its_steps(here, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    places = sweep.environments(3, [], 1, 1, here)
    assert [place[processes.LINE] for place in places] == ["1", "2", "3"]
    assert not any("TQDM_DISABLE" in place for place in places)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert {place["TQDM_DISABLE"] for place in sweep.environments(3, [], 1, 1, here)} == {"1"}


def test_progress_names_the_chapters_and_their_runs(here, capsys):
    specs = [*SPECS[:3], *(replace(spec, chapter="02_stark") for spec in SPECS[:2])]
    sweep.run_sweep(specs, store=here, gpus=[], run=run, progress=True)
    shown = capsys.readouterr().err
    assert "01_pilot 3/3, 1/2 chapters" in shown and "02_stark 2/2, 2/2 chapters" in shown


def test_claims_alone(here, monkeypatch):
    """Of a chapter's plan, what claims read; what they do not (STARK at another lambda, RTE) is left out."""
    monkeypatch.setenv("KDUTILS_RUNS", str(here.runs))
    options = sweep._parser().parse_args(["02_stark", "--profile", "mini", "--task", "sst2,rte"])
    every = wanted.chosen(options)
    options.claims = True
    found = wanted.chosen(options)
    assert set(found) < set(every) and {spec.task for spec in found} == {"sst2"}
    assert found[0].method == "KD" and not any(spec.args.get("lam") for spec in found)
    assert any(spec.args.get("lam") for spec in every)


def test_visible_gpus_are_found(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,7")
    assert sweep.gpus_here() == ["2", "7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert sweep.gpus_here() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    listing = "GPU 0: NVIDIA X (UUID: GPU-1)\n  MIG 1g Device 0: (UUID: MIG-3)\nGPU 1: NVIDIA X (UUID: GPU-2)\n"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=listing))
    assert sweep.gpus_here() == ["0", "1"]


@pytest.mark.parametrize(("how", "line"), [
    ({"workers": 0}, "workers: got 0; allowed: integers from 1"),
    ({"threads": 0}, "threads: got 0"),
    ({"per_gpu": "2"}, "per-gpu: got '2'"),
    ({"retries": -1}, "retries: got -1; allowed: integers from 0"),
    ({"backend": "dask"}, "backend: got 'dask'; allowed: local, ray"),
])
def test_bad_arguments_stop_before_any_work(here, how, line):
    with pytest.raises(ValueError, match=line):
        sweep_it(SPECS, here, **how)
    assert not here.runs.exists()


def test_a_store_or_a_source_that_cannot_be_used_stops_before_any_worker(here, monkeypatch):
    monkeypatch.setattr(pools, "local", None)
    specs = [Spec("01_pilot", task, "KD", "mini", 0, {}, {}) for task in ("rotten", "mrpc")]
    monkeypatch.setenv("KDUTILS_GLUE", "/nope")
    for call in (sweep_it, wanted.dry_run):
        with pytest.raises(ValueError, match=r"KDUTILS_GLUE: got '/nope' for task 'mrpc' \(no such folder\)"):
            call(specs, here)
    assert not here.runs.exists()
    here.runs.symlink_to("/proc/nope/runs")
    with pytest.raises(ValueError, match="KDUTILS_RUNS: got .*; allowed: a folder that can be written"):
        sweep_it(specs[:1], here)


def test_a_notebook_too_checks_them_before_it_trains(here, monkeypatch):
    from kdutils import figures

    monkeypatch.setattr(experiments, "run", None)
    monkeypatch.setenv("KDUTILS_RUNS", str(here.runs))
    monkeypatch.setenv("KDUTILS_GLUE", "/nope")
    with pytest.raises(ValueError, match=r"KDUTILS_GLUE: got '/nope' for task 'rte' \(no such folder\)") as error:
        figures.runs("01_pilot", "paper", "rte", train=True)
    assert error.value._render_traceback_() == [str(error.value)] and not here.runs.exists()
    monkeypatch.setenv("KDUTILS_RUNS", "/proc/nope")
    with pytest.raises(ValueError, match="KDUTILS_RUNS: got '/proc/nope'; allowed: a folder that can be written"):
        figures.runs("01_pilot", "smoke", train=True)


def test_a_trial_s_student_tells_its_teacher(monkeypatch):
    told = SimpleNamespace(teacher=None, settings=profiles.settings("smoke", "synthetic"), signals={"train": None},
                           weights="abc")
    monkeypatch.setattr(common, "bench", lambda spec: told)
    monkeypatch.setattr("kdutils.bert.keep_layers", lambda *_: None)  # by name: workers import this module
    monkeypatch.setattr(common, "distil_student", lambda *_: {"metrics": {}, "extra": {"steps": 5}})
    made = choices.run(choices.plan_choice("smoke", "synthetic")[0])
    assert made == {"metrics": {}, "extra": {"steps": 5, "teacher_weights": "abc"}}


# Shards


@pytest.mark.parametrize("count", [1, 3, 7])
def test_shards_are_a_partition_that_no_order_changes(count):
    specs = [a_spec(seed) for seed in range(60)]
    shards = [wanted.shard_of(specs, f"{i}/{count}") for i in range(count)]
    assert sorted(spec.key for shard in shards for spec in shard) == sorted(spec.key for spec in specs)
    assert all(shards)
    assert [set(wanted.shard_of(specs[::-1], f"{i}/{count}")) for i in range(count)] == [set(shard) for shard in shards]


def test_shards_leave_together_what_one_sweep_leaves(tmp_path):
    whole, parts = (Store(tmp_path / name, tmp_path / "published") for name in ("whole", "parts"))
    sweep_it(SPECS, whole)
    for i in range(2):
        sweep_it(wanted.shard_of(SPECS, f"{i}/2"), parts)
    assert content(whole) == content(parts)
    assert all(len(attempts(parts, spec)) == 1 for spec in SPECS)


# Packs


def packable(seed, **args):
    return Spec("05_knowledge_probes", "synthetic", "Random-All", "smoke", seed, args, {})


def run_pack(specs, finished):
    """`test_sweep.run` for each, two at a time."""
    for i in range(0, len(specs), 2):
        made = {}
        for spec in specs[i : i + 2]:
            try:
                made[spec] = run(spec)
            except RuntimeError as error:
                made[spec] = error
            else:
                made[spec]["extra"]["packed"] = len(specs)
        finished(made)


def three(spec):
    return 3


def broken(specs, finished):
    finished({specs[0]: run(specs[0])})
    raise RuntimeError("device lost")


SEVERAL = [packable(seed) for seed in range(6)]
ALONE = [Spec("01_pilot", "synthetic", "KD", "smoke", seed, {}, {}) for seed in range(2)]
PACKED = pools.Packed(run_pack)


def pack_it(specs, store, packed=PACKED, pack=10, **how):
    return sweep_it(specs, store, pack=pack, packed=packed, **how)


def sizes(store, specs):
    return [store.get(spec)["extra"].get("packed") for spec in specs]


def test_packs_are_cut_to_size_or_shared_out():
    specs = [packable(seed) for seed in range(7)]
    alone = ALONE[:1]
    assert wanted.in_packs(specs + alone) == [[spec] for spec in specs + alone]
    assert wanted.in_packs(specs + alone, 3) == [specs[:3], specs[3:6], specs[6:], alone]
    assert wanted.in_packs(specs + alone, "auto", 2) == [specs[:4], specs[4:], alone]


def test_a_mixed_list_packs_what_can_be_packed(here, capsys):
    swept = pack_it([*SEVERAL[:2], *ALONE, *SEVERAL[2:]], here, workers=2)
    assert set(swept.done) == {*SEVERAL, *ALONE} and not swept.failed
    assert sizes(here, SEVERAL + ALONE) == [6] * 6 + [None] * 2
    assert len(capsys.readouterr().out.splitlines()) == 8
    assert pack_it(SEVERAL + ALONE, here).present == SEVERAL + ALONE
    assert all(len(attempts(here, spec)) == 1 for spec in SEVERAL + ALONE)


def test_as_many_as_there_is_room_for_are_trained_at_once(here):
    pack_it([*SEVERAL, packable(6)], here, pools.Packed(run_pack, three), "auto")
    assert sizes(here, [*SEVERAL, packable(6)]) == [3] * 6 + [None]  # three packs of equal size, the last of one run


def test_a_killed_pack_loses_only_unfinished_runs(here, capsys):
    victim = packable(100, kills=1)
    specs = [*SEVERAL[:4], victim, *SEVERAL[4:]]
    swept = pack_it(specs, here)
    assert set(swept.done) == set(specs) and not swept.failed
    assert sizes(here, specs) == [7] * 4 + [2, 2, None]  # what was left came back as two halves
    assert [len(attempts(here, spec)) for spec in specs] == [1] * 4 + [2, 1, 1]
    assert capsys.readouterr().out.count("exit code -9") == 3


def test_what_fails_in_a_pack_fails_alone(here):
    bad = packable(100, errors=1)
    swept = pack_it([bad, *SEVERAL], here)
    assert swept.failed == [bad] and set(swept.done) == set(SEVERAL)
    assert "RuntimeError: loss is nan" in (here.runs / "failures" / f"{bad.key}.txt").read_text()
    assert sizes(here, SEVERAL) == [7] * 6


def test_what_stops_a_pack_fails_the_runs_of_that_pack_and_no_others(here, monkeypatch):
    monkeypatch.setattr(pools, "POLL", 0.05)
    swept = pack_it(SEVERAL, here, pools.Packed(broken, three), "auto")
    assert swept.failed == [*SEVERAL[1:3], *SEVERAL[4:]] and swept.done == [SEVERAL[0], SEVERAL[3]]
    assert [(here.runs / "attempts" / s.key).exists() for s in SEVERAL] == [True, False, False, True, False, False]


def test_a_resumed_pack_leaves_out_what_is_done_or_held_elsewhere(here, monkeypatch):
    monkeypatch.setattr(pools, "POLL", 0.05)
    here.put(SEVERAL[0], {"metrics": {}}, 1.0)
    events = pools.local([SEVERAL], run, here, sweep.environments(1, [], 1, 1, here), 1, 0, PACKED)
    with here.lease(SEVERAL[1]), here.lease(SEVERAL[2]):
        assert {next(events)[0] for _ in range(4)} == {SEVERAL[0], *SEVERAL[3:]}
        time.sleep(0.1)
        here.put(SEVERAL[1], {"metrics": {}}, 1.0)
    assert {spec: status for spec, status, _ in events} == {SEVERAL[1]: "done", SEVERAL[2]: "done"}
    assert sizes(here, SEVERAL) == [None, None, None, 3, 3, 3]
    assert not any((here.runs / "attempts" / spec.key).exists() for spec in SEVERAL[:2])


def test_seconds_are_the_packs_share(here, monkeypatch):
    specs = [packable(seed, sleep=0.2) for seed in (0, 1)]
    monkeypatch.setenv("KDUTILS_RUNS", str(here.runs))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pools._attempt(specs, run, PACKED, here, lambda event: None)
    assert all(0.2 <= here.get(spec)["seconds"] < 0.35 for spec in specs)


def test_the_dry_run_says_how_many_packs(here):
    last = [wanted.dry_run(SEVERAL + ALONE, here, 2, pack).splitlines()[-1] for pack in (4, "auto", 1)]
    assert last[0] == "packs: 2 of at most 4, for 6 of the runs"
    assert last[1] == "packs: 2 of at most 3, for 6 of the runs, or more where fewer fit"
    assert last[2].startswith("8 to run, 0 in the store")


@pytest.mark.parametrize(("how", "line"), [
    ({"pack": 0}, "pack: got 0; allowed: integers from 1, or auto"),
    ({"pack": "many"}, "pack: got 'many'; allowed: integers from 1, or auto"),
    ({"pack": True}, "pack: got True; allowed: integers from 1, or auto"),
    ({"backend": "ray"}, "pack: got 10 with backend ray; allowed: 1"),
])
def test_bad_packs_stop_before_any_work(here, how, line):
    with pytest.raises(ValueError, match=line):
        pack_it(SEVERAL, here, **how)
    assert not here.runs.exists()


# Ray


@pytest.fixture(scope="module")
def cluster():
    """A local Ray cluster with two workers."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[sweep]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


def test_ray_leaves_the_store_that_one_worker_leaves(tmp_path, cluster):
    alone, ray = (Store(tmp_path / name, tmp_path / "published") for name in ("alone", "ray"))
    victim, bad = a_spec(100, kills=1), a_spec(101, errors=99)
    specs = [a_spec(seed, sleep=0.2) for seed in range(6)] + [victim, bad]
    for store, how in ((alone, {}), (ray, {"backend": "ray", "threads": 1})):
        swept = sweep_it(specs, store, **how)
        assert swept.failed == [bad] and len(swept.done) == len(specs) - 1
        assert "RuntimeError: loss is nan" in (store.runs / "failures" / f"{bad.key}.txt").read_text()
    assert content(alone) == content(ray)
    assert len(attempts(ray, victim)) == 2
    assert len({attempts(ray, spec)[0].split()[0] for spec in specs[:6]}) == 2


def test_without_ray_one_line_says_so(here, in_process, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="backend: got 'ray', which is not installed"):
        sweep_it(SPECS, here, backend="ray")
    code, out, err = in_process("01_pilot", "--profile", "smoke", "--backend", "ray", "--dry-run")
    assert code == 2 and out == "" and err.startswith("backend: got 'ray', which is not installed")
    assert not here.runs.exists()


# The dry run and the command line


def record(store, spec, seconds):
    store.put(spec, {"metrics": {}}, seconds)


def test_estimates_are_medians_of_the_most_similar_runs(here):
    for seconds in (100, 200, 3000):
        record(here, a_spec(seconds), seconds)
    record(here, a_spec(1, method="STARK"), 7)
    record(here, a_spec(1, task="rotten"), 50)
    asked = [a_spec(0), a_spec(0, method="PTP"), a_spec(0, task="rotten", method="PTP"), a_spec(0, task="mrpc"),
             a_spec(0, task="mrpc", method="PTP"), Spec("02_stark", "mrpc", "KD", "smoke", 0, {}, {})]
    group, method = ("chapter", "profile", "task", "method"), ("chapter", "profile", "method")
    assert wanted.estimates(asked, here) == [
        (200, group), (150, group[:3]), (50, group[:3]), (150, method), (100, group[:2]), (100, ("profile",)),
    ]
    assert wanted.estimates([Spec("01_pilot", "mrpc", "KD", "mini", 0, {}, {})], here) == [(None, ())]


def test_dry_run_prints_a_table_and_the_hours(here):
    for seed in range(2):
        record(here, a_spec(seed), 1800)
    specs = [a_spec(seed) for seed in range(6)] + [Spec("02_stark", "mrpc", "STARK", "mini", 0, {}, {})]
    lines = wanted.dry_run(specs, here, slots=2).splitlines()
    assert lines[0].split() == [*"chapter profile task method to run in store hours timed as same".split()]
    assert lines[1].split(maxsplit=7) == ["01_pilot", "smoke", "synthetic", "KD", "4", "2", "2.00",
                                          "chapter, profile, task, method"]
    assert lines[2].split() == ["02_stark", "mini", "mrpc", "STARK", "1", "0", "0.00", "unknown"]
    assert lines[3] == (
        "5 to run, 2 in the store; about 1.00 hours with 2 at a time, and 1 runs with no similar record to time them by"
    )
    assert wanted.dry_run([], here) == "nothing planned"


@pytest.fixture
def command(tmp_path):
    """Runs the command line in a book that has one more chapter, 99_fake."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(textwrap.dedent(f"""
        import sys
        sys.path += [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        import kdutils.experiments as experiments
        experiments.CHAPTERS["99_fake"] = "fake"
        experiments.__path__.append({str(tmp_path / "site")!r})
    """))
    (tmp_path / "site" / "fake.py").write_text(textwrap.dedent("""
        from kdutils.records import Spec
        from test_sweep import run
        def plan(profile, task):
            return [Spec("99_fake", task, method, profile, seed, args, {})
                    for method, args in (("KD", {}), ("BAD", {"errors": 1})) for seed in range(4)]
    """))
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "KDUTILS_RUNS": str(tmp_path / "runs")}
    (tmp_path / "_toc.yml").touch()

    def call(*arguments):
        command = [sys.executable, "-m", "kdutils.sweep", *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    call.environment = environment
    return call


@pytest.fixture
def in_process(tmp_path, monkeypatch, capsys):
    """The command line in this process, where 01_pilot plans four runs of KD for every task; (code, out, err)."""
    plan = SimpleNamespace(plan=lambda profile, task: [a_spec(seed, task=task) for seed in range(4)])
    monkeypatch.setitem(sys.modules, "kdutils.experiments.pilot", plan)
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path / "runs"))
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield lambda *arguments: (sweep.main(arguments), *capsys.readouterr())
    signal.signal(signal.SIGTERM, before)


def test_command_line_runs_reports_and_goes_on(command, tmp_path):
    smoke = ("99_fake", "--profile", "smoke", "--threads", "1")
    first = command(*smoke, "--method", "KD", "--seeds", "0,2-3", "--workers", "2")
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == "3 run, 0 in the store before, 0 failed"
    assert "3/3" in first.stderr and not (tmp_path / "runs" / "failures").exists()
    dry = command(*smoke, "--dry-run")
    assert dry.stdout.splitlines()[1].split()[:6] == ["99_fake", "smoke", "synthetic", "KD", "1", "3"]
    assert dry.stdout.splitlines()[-1].startswith("5 to run, 3 in the store; about 0.00 hours with 1 at a time")
    limited = command(*smoke, "--limit", "1")
    assert limited.stdout.splitlines()[-1] == "1 run, 0 in the store before, 0 failed"
    rest = command(*smoke)
    assert rest.returncode == 1
    assert rest.stdout.splitlines()[-1] == "0 run, 4 in the store before, 4 failed"
    assert len(list((tmp_path / "runs" / "failures").glob("*.txt"))) == 4
    records = "".join(path.read_text() for path in (tmp_path / "runs" / "99_fake").glob("*.json"))
    (tmp_path / "list").write_text(records)
    from_list = command("--list", "list")
    assert from_list.stdout.splitlines() == ["0 run, 4 in the store before, 0 failed"]


@pytest.mark.parametrize(("arguments", "line"), [
    (["1"], "chapter: got '1'; allowed: 00_choices"),
    (["01_pilot", "--profile", "big"], "profile: got 'big'; allowed: smoke"),
    (["01_pilot", "--task", "mrpc"], "task: got 'mrpc' for profile 'smoke'; allowed: synthetic"),
    (["01_pilot", "--method", "KDD,KD"], "method: got KDD; allowed: KD"),
    (["01_pilot", "--seeds", "five"], "seeds: got 'five'; allowed: numbers and ranges"),
    (["01_pilot", "--seeds", "3-1"], "seeds: got '3-1'"),
    (["01_pilot", "--seeds", "2,7"], "seeds: got 7; allowed: 0, 1, 2, 3"),
    (["01_pilot", "--seeds", "0-9999"], "seeds: got 4, 5, 6, 7, 8 and 9991 more; allowed: 0, 1, 2, 3"),
    (["01_pilot", "--seeds", "0-10000"], "seeds: got '0-10000'; allowed: at most 10000 seeds"),
    (["01_pilot", "--seeds", "0-6000,7000-12000"], "seeds: got '0-6000,7000-12000'; allowed: at most 10000 seeds"),
    (["01_pilot", "--seeds", "9" * 5000], "seeds: got '999"),
    (["01_pilot", "--seeds", ""], "seeds: got ''; allowed: numbers and ranges"),
    (["01_pilot", "--seeds", "²"], "seeds: got '²'; allowed: numbers and ranges"),
    (["01_pilot", "--seeds", "0-²"], "seeds: got '0-²'; allowed: numbers and ranges"),
    (["01_pilot", "--task", ""], "task: got '' for profile 'smoke'; allowed: synthetic"),
    (["01_pilot", "--method", ""], "method: got ''; allowed: KD"),
    (["01_pilot", "--profile", ""], "profile: got ''; allowed: smoke"),
    (["01_pilot", "--gpus", "", "--dry-run"], "gpus: got ''; allowed: "),
    (["01_pilot", "--per-gpu", "0"], "per-gpu: got 0; allowed: integers from 1"),
    (["01_pilot", "--shard", "²/3"], "shard: got '²/3'; allowed: i/n"),
    (["01_pilot", "--workers", "²"], "workers: got '²'; allowed: integers from 1, or auto"),
    (["01_pilot", "--pack", "²"], "pack: got '²'; allowed: integers from 1, or auto"),
    (["01_pilot", "--retries", "-1", "--dry-run"], "retries: got -1; allowed: integers from 0"),
    (["01_pilot", "--backend", "ray", "--pack", "2", "--dry-run"], "pack: got 2 with backend ray; allowed: 1"),
    (["01_pilot", "--shard", "2"], "shard: got '2'; allowed: i/n"),
    (["01_pilot", "--limit", "0"], "limit: got 0"),
    (["01_pilot", "--workers", "0"], "workers: got 0"),
    (["01_pilot", "--workers", "many"], "workers: got 'many'; allowed: integers from 1, or auto"),
    (["all", "01_pilot"], "chapter: got 'all'; allowed: 00_choices"),
    (["01_pilot", "--gpus", "98,99", "--dry-run"], "gpus: got 98, 99; allowed: "),
    (["01_pilot", "--pack", "0"], "pack: got 0; allowed: integers from 1, or auto"),
    (["01_pilot", "--pack", "few", "--dry-run"], "pack: got 'few'; allowed: integers from 1, or auto"),
    (["01_pilot", "--list", "nowhere"], "list: got 'nowhere'; allowed: a file of specs (No such file"),
    (["01_pilot", "--list", ""], "list: got ''; allowed: a file of specs (Is a directory)"),
    (["--list", "list", "--profile", "mini"], "profile: got 'mini' with a list alone, whose specs say theirs"),
    (["--list", "list", "--task", ""], "task: got '' with a list alone, whose specs say theirs"),
])
def test_bad_command_lines_get_one_line(in_process, tmp_path, arguments, line):
    profile = ["--profile", "smoke"] if "list" not in arguments else []
    code, out, err = in_process(*profile, *arguments)
    assert code == 2 and out == "" and err.startswith(line) and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("change", "line"), [
    ({"chapter": "99_none"}, "chapter: got '99_none'; allowed: 00_choices"),
    ({"profile": "big"}, "profile: got 'big'; allowed: smoke"),
    ({"task": "mrpc"}, "task: got 'mrpc' for profile 'smoke'; allowed: synthetic"),
    ({"settings": {"epochs": "three"}}, "epochs: got 'three'; allowed: float"),
    ({"settings": {"epochs": True}}, "epochs: got True; allowed: float"),
    ({"settings": {"batch_size": 0.5}}, "batch_size: got 0.5; allowed: int"),
    ({"settings": {"lr": "1e-4"}}, "lr: got '1e-4'; allowed: float"),
    ({"settings": {"layers": 3}}, "layers: got 3; allowed: tuple"),
    ({"settings": {"model": None}}, "model: got None; allowed: str"),
    *[({"settings": {name: value}}, f"{name}: got {value!r}; allowed: numbers above 0)") for name, value in {
        "teacher_epochs": 0, "epochs": -1, "lr": 0.0, "teacher_lr": -1e-4, "batch_size": 0, "max_length": 0, "depth": 0,
    }.items()],
    ({"settings": {"rows": -1}}, "rows: got -1; allowed: integers from 0)"),
    ({"settings": {"held": 0.0}}, "held: got 0.0; allowed: numbers between 0 and 1)"),
    ({"settings": {"held": 1}}, "held: got 1; allowed: numbers between 0 and 1)"),
    ({"settings": {"precision": "fp16"}}, "precision: got 'fp16'; allowed: fp32, bf16, auto)"),
    ({"settings": {"layers": [0, 1]}}, "layers: got [0, 1]; allowed: integers from 1 to 6)"),
    ({"settings": {"layers": []}}, "layers: got []; allowed: integers from 1 to 6)"),
    ({"settings": {"layers": [1.0]}}, "layers: got [1.0]; allowed: integers from 1 to 6)"),
    ({"settings": {"layers": [1, 5], "depth": 4}}, "layers: got [1, 5]; allowed: integers from 1 to 4)"),
    ({"seed": -1}, "seed: got -1"), ("[" * 100_000, "maximum recursion"), ("{}", ""), ("5", ""),
], ids=lambda value: str(value)[:30])
def test_bad_lines_of_a_list_are_named(in_process, tmp_path, change, line):
    bad = change if isinstance(change, str) else json.dumps(asdict(a_spec(0)) | change)
    (tmp_path / "list").write_text(f"{json.dumps(asdict(a_spec(0)))}\n\n{bad}\n")
    code, out, err = in_process("--list", "list", "--dry-run")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(f"list: got line 3 of list; allowed: a spec or record ({line}")


def test_what_is_planned_may_stand_in_a_list():
    specs = [spec for chapter in experiments.CHAPTERS for name in profiles.PROFILES
             for spec in experiments.plan(chapter, name)]
    assert [wanted._checked(spec) for spec in specs] == specs


def test_a_list_s_lines_end_at_newlines_only_and_its_text_is_utf_8(in_process, tmp_path):
    specs = [a_spec(0, word="a\u2028b"), Spec("01_pilot", "synthetic", "KD", "smoke", 1, {}, {"lr": 1, "layers": [1]})]
    text = "\r\n\n".join(json.dumps(asdict(spec), ensure_ascii=False) for spec in specs)
    (tmp_path / "list").write_bytes(text.encode())
    assert wanted.listed(tmp_path / "list") == specs
    (tmp_path / "list").write_bytes(b"\xff\n")
    code, _, err = in_process("--list", "list")
    assert code == 2 and err.startswith("list: got 'list'; allowed: a file of specs ('utf-8' codec") and "\n" == err[-1]


def test_selection(in_process, tmp_path):
    planned = [a_spec(seed) for seed in range(4)]
    (tmp_path / "list").write_text("".join(json.dumps(asdict(spec)) + "\n" for spec in planned[1:]))

    def chosen(*arguments):
        profile = [] if arguments[0] == "--list" else ["--profile", "smoke"]
        return wanted.chosen(sweep._parser().parse_args([*arguments, *profile]))

    assert set(planned) < set(chosen("all"))
    assert chosen("01_pilot") == planned and chosen("--list", "list") == planned[1:]
    assert chosen("01_pilot", "--list", "list", "--task", "synthetic") == [*planned[1:], planned[0]]
    assert chosen("01_pilot", "--seeds", "0,2-3", "--method", "KD") == [planned[0], *planned[2:]]
    assert chosen("01_pilot", "--shard", "1/2") == [spec for spec in planned if int(spec.key, 16) % 2]
    code, out, _ = in_process("01_pilot", "--profile", "smoke", "--dry-run", "--limit", "3")
    assert code == 0 and "3 to run, 0 in the store" in out.splitlines()[-1]


def _interruptible():
    """What a shell starts in the background ignores Ctrl-C, and hands that on to its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_ended_leaves_no_worker_and_keeps_its_runs(command, tmp_path, sign):
    sleeps = (0.0, 3.0)
    specs = [Spec("99_fake", "synthetic", "KD", "smoke", 0, {"sleep": sleep}, {}) for sleep in sleeps]
    (tmp_path / "list").write_text("".join(json.dumps(asdict(spec)) + "\n" for spec in specs))
    store = Store(tmp_path / "runs", tmp_path / "published")
    call = [sys.executable, "-m", "kdutils.sweep", "--list", "list", "--threads", "1"]
    process = subprocess.Popen(call, cwd=tmp_path, env=command.environment, stderr=subprocess.PIPE, text=True,
                               preexec_fn=_interruptible)
    deadline, begun = time.monotonic() + 30, store.runs / "attempts" / specs[1].key
    while not (begun.exists() and begun.read_text().endswith("\n")):  # a file is there before its first line is
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    worker = int(attempts(store, specs[1])[0].split()[0])
    process.send_signal(sign)
    _, errors = process.communicate(timeout=30)
    if sign != signal.SIGKILL:
        assert process.returncode == 130 and "interrupted: finished runs are in the store" in errors
        assert store.get(specs[1]) is None
    while Path(f"/proc/{worker}").exists():  # an orphan ends with its run, which is kept
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert store.get(specs[0]) and command("--list", "list").returncode == 0
    assert store.get(specs[1]) and len(attempts(store, specs[1])) == (1 if sign == signal.SIGKILL else 2)


@pytest.mark.parametrize(("arguments", "line"), [
    (["--task", "nope"], "task: got 'nope'; allowed: mrpc"),
    (["--steps", "0"], "steps: got 0; allowed: numbers above 0"),
    (["--seeds", "-1"], "seeds: got -1; allowed: numbers above 0"),
    (["--epochs", "nan"], "epochs: got nan; allowed: numbers above 0"),
])
def test_bad_options_of_the_benchmarks_get_one_line(monkeypatch, capsys, arguments, line):
    from benchmarks import __main__ as benchmarks

    monkeypatch.setattr(benchmarks, "measure", None)
    assert benchmarks.main(["--only", "training", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == 1
