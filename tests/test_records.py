"""Specs, keys, the store under faults, publishing. None of it needs torch."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from kdutils import experiments, figures, profiles, records, spec, store
from kdutils.records import TEACHER, Busy, MissingRuns, Spec, Store, command_for, ensure, frame, look_up, publish, stale

ROOT = Path(__file__).resolve().parents[1]
OUTCOME = {"metrics": {"dev": {"f1": 0.8, "accuracy": 0.7}}, "best": {"epoch": 2, "dev": {"f1": 0.9}}}


def a_spec(seed=0, **changes):
    values = {"chapter": "01_pilot", "task": "mrpc", "method": "KD", "profile": "mini", "seed": seed,
              "args": {"sparsity": 0.3, "scores": "random"}, "settings": asdict(profiles.Settings())}
    return Spec(**(values | changes))


@pytest.fixture
def here(tmp_path):
    return Store(tmp_path / "runs", tmp_path / "published")


def python(code, folder, *args, wait=True):
    """Run `code` in a fresh interpreter whose store is in `folder`."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "KDUTILS_RUNS": f"{folder}/runs"}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    if wait:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return subprocess.Popen(command, env=environment)


# Keys


def test_key_is_the_hash_of_canonical_json():
    import hashlib

    text = (
        '{"args":{"scores":"random","sparsity":0.3},"chapter":"01_pilot","method":"KD","profile":"mini","seed":7,'
        '"settings":{"epochs":99},"task":"mrpc"}'
    )
    made = a_spec(7, settings=asdict(profiles.Settings(epochs=99)))
    assert made.key == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_key_does_not_depend_on_order_process_or_container(tmp_path):
    first = a_spec(args={"a": 1, "b": [1, 2]})
    assert first.key == a_spec(args={"b": (1, 2), "a": 1}).key
    assert first == a_spec(args={"b": (1, 2), "a": 1}) and hash(first) == hash(a_spec(args={"b": (1, 2), "a": 1}))
    other = python("import test_records as t; print(t.a_spec(args={'b': (1, 2), 'a': 1}).key)", tmp_path)
    assert other.stdout.strip() == first.key


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"task": "rte"}, {"method": "STARK"}, {"profile": "demo"}, {"chapter": "02_stark"},
    {"args": {"sparsity": 0.30000000000000004, "scores": "random"}}, {"settings": asdict(profiles.Settings(epochs=99))},
])
def test_every_part_of_a_spec_is_in_its_key(change):
    assert a_spec(**change).key != a_spec().key


def test_settings_at_their_default_are_left_out_of_the_key():
    assert a_spec(settings={}).key == a_spec().key


def test_adding_or_removing_a_setting_leaves_keys_and_records_alone(here, monkeypatch):
    here.put(a_spec(), OUTCOME, 1.0)
    before = spec._defaults()
    monkeypatch.setattr(spec, "_defaults", lambda: before | {"brand_new": 5})
    assert here.get(a_spec(settings=before | {"brand_new": 5}))
    assert not here.get(a_spec(settings=before | {"brand_new": 6}))
    fewer = {name: value for name, value in before.items() if name != "epochs"}
    monkeypatch.setattr(spec, "_defaults", lambda: fewer)
    assert here.get(a_spec(settings=fewer))


def test_changing_a_default_does_not_pass_old_records_off_as_new_ones(here, monkeypatch):
    key = here.put(a_spec(), OUTCOME, 1.0)["key"]
    changed = spec._defaults() | {"epochs": 99}
    monkeypatch.setattr(spec, "_defaults", lambda: changed)
    assert a_spec(settings={}).key == key
    with pytest.warns(UserWarning, match=key):
        assert here.get(a_spec(settings=changed)) is None


@pytest.mark.parametrize(("change", "line"), [
    ({"args": {"x": float("nan")}}, r"args\.x: got nan; allowed: finite"),
    ({"args": {"x": [1.0, float("inf")]}}, r"args\.x\[1\]: got inf"),
    ({"args": {"x": {1, 2}}}, r"args\.x: got set"),
    ({"args": {"x": {1: 2}}}, r"args\.x: got dict"),
    ({"args": {"x": b"a"}}, r"args\.x: got bytes"),
    ({"args": {"data": "/data/glue"}}, r"args\.data: got '/data/glue'"),
    ({"args": {"seed": 3}}, r"args: got \['seed'\]"),
    ({"args": 5}, r"args: got 5"),
    ({"settings": {"epoch": 3}}, r"settings: got \['epoch'\]; allowed: .*epochs"),
    ({"seed": "five"}, r"seed: got 'five'"),
    ({"seed": True}, r"seed: got True"),
    ({"seed": -1}, r"seed: got -1"),
    ({"chapter": "../x"}, r"chapter: got '\.\./x'"),
    ({"method": ""}, r"method: got ''"),
])
def test_bad_values_are_refused_in_one_line(change, line):
    with pytest.raises(ValueError, match=line) as caught:
        a_spec(**change)
    assert "\n" not in str(caught.value)


# Putting and getting


def test_a_record_holds_spec_outcome_and_provenance(here):
    made = here.put(a_spec(3), OUTCOME | {"extra": {"device": "a GPU", "count": np.int64(4)}}, seconds=1.5)
    again = here.get(a_spec(3))
    assert again == made == json.loads(here.path(a_spec(3)).read_text())
    assert again["spec"] == asdict(a_spec(3)) and again["key"] == a_spec(3).key
    assert (again["schema"], again["recipe"], again["seconds"]) == (1, records.RECIPE, 1.5)
    assert again["device"] == "a GPU" and again["extra"]["count"] == 4
    assert again["versions"]["numpy"] == np.__version__
    assert again["losses"] == {} and again["curve"] == []


def test_a_record_names_no_host_and_no_path(here):
    text = json.dumps(here.put(a_spec(), OUTCOME, 1.0))
    assert os.uname().nodename not in text.split('"') and str(ROOT) not in text and str(Path.home()) not in text


@pytest.mark.parametrize(("outcome", "line"), [
    ({"metrics": {"dev": {"f1": float("nan")}}}, r"metrics\.dev\.f1: got nan"),
    ({"curve": [[i, 0.5] for i in range(51)]}, r"curve: got 51 points; allowed: at most 50"),
    ({"metric": {}}, r"outcome: got \['metric'\]"),
    ({"extra": {"weights": object()}}, r"extra\.weights: got object"),
])
def test_a_bad_outcome_stores_nothing(here, outcome, line):
    with pytest.raises(ValueError, match=line):
        here.put(a_spec(), outcome, 1.0)
    assert here.get(a_spec()) is None and not list(here.runs.rglob("*"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', '{"schema": 1, "key": 3}', "\x00\x00",
                                  "[" * 100_000], ids=lambda text: text[:20])
def test_torn_and_foreign_files_are_no_records(here, text):
    here.put(a_spec(), OUTCOME, 1.0)
    here.path(a_spec()).write_text(text)
    with pytest.warns(UserWarning, match=f"01_pilot/{a_spec().key}.json is torn or foreign"):
        assert here.get(a_spec()) is None
    with pytest.warns(UserWarning, match="torn or foreign"):
        assert here.records("01_pilot") == []


def test_a_nan_and_a_folder_are_no_records(here):
    record = here.put(a_spec(), OUTCOME, 1.0)
    here.path(a_spec()).write_text(json.dumps(record | {"losses": {"kd": float("nan")}}))
    here.path(a_spec(1)).mkdir()
    for seed, why in enumerate(("is torn or foreign", r"cannot be read \(Is a directory\)")):
        with pytest.warns(UserWarning, match=f"{a_spec(seed).key}.json {why}"):
            assert here.get(a_spec(seed)) is None
    with pytest.warns(UserWarning):
        assert here.records("01_pilot") == [] and publish("01_pilot", here) == {"01_pilot": 0}


@pytest.mark.parametrize("name", ["created", "seconds", "device", "versions", "commit", "dirty", "metrics", "best",
                                  "losses", "curve", "extra"])
def test_a_record_without_one_of_its_fields_does_not_stop_a_chapter(here, name):
    good = here.put(a_spec(1), OUTCOME, 1.0)
    record = here.put(a_spec(), OUTCOME, 1.0)
    of_another_type = "long" if name == "seconds" else 5
    for foreign in ({k: v for k, v in record.items() if k != name}, record | {name: of_another_type}):
        here.path(a_spec()).write_text(json.dumps(foreign))
        with pytest.warns(UserWarning, match="torn or foreign"):
            assert here.get(a_spec()) is None
        with pytest.warns(UserWarning, match="torn or foreign"):
            assert here.records("01_pilot") == [good]


def test_every_truncation_of_a_record_is_refused(here):
    here.put(a_spec(), OUTCOME, 1.0)
    whole = here.path(a_spec()).read_text()
    for end in range(0, len(whole) - 2, 7):
        here.path(a_spec()).write_text(whole[:end])
        with pytest.warns(UserWarning, match="torn"):
            assert here.get(a_spec()) is None


def test_a_record_under_another_name_is_no_record(here):
    here.put(a_spec(), OUTCOME, 1.0)
    here.path(a_spec()).rename(here.path(a_spec(1)))
    with pytest.warns(UserWarning, match=f"{a_spec(1).key}.json is torn or foreign"):
        assert here.get(a_spec(1)) is None


def test_kill_9_amid_many_puts_leaves_whole_records_only(tmp_path):
    process = python("""
        import itertools, test_records as t
        store = t.Store()
        for seed in itertools.count():
            store.put(t.a_spec(seed), t.OUTCOME | {"extra": {"long": list(range(5000))}}, 1.0)
    """, tmp_path, wait=False)
    folder = tmp_path / "runs" / "01_pilot"
    deadline = time.monotonic() + 30
    while len(list(folder.glob("*.json"))) < 40:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(random.random() / 100)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    files = list(folder.glob("*.json"))
    found = Store(tmp_path / "runs", tmp_path / "published").records("01_pilot")
    assert len(found) == len(files) >= 40
    assert all(record["extra"]["long"] == list(range(5000)) for record in found)


def test_a_put_that_dies_half_written_leaves_no_record_and_can_be_made_again(tmp_path, here):
    died = python("""
        import os, signal, test_records as t
        def die(descriptor):  # as when the power fails before the data has reached the disk
            os.ftruncate(descriptor, 50)
            os.kill(os.getpid(), signal.SIGKILL)
        os.fsync = die
        t.Store().put(t.a_spec(), t.OUTCOME, 1.0)
    """, tmp_path)
    assert died.returncode == -signal.SIGKILL
    left = [path for path in here.runs.rglob("*") if path.is_file()]
    assert [path.stat().st_size for path in left] == [50] and left[0].suffix != ".json"
    assert here.get(a_spec()) is None and here.records("01_pilot") == []
    here.put(a_spec(), OUTCOME, 1.0)
    assert here.get(a_spec()) and len(here.records("01_pilot")) == 1


def test_a_full_disk_leaves_the_record_before(here, monkeypatch):
    before = here.put(a_spec(), OUTCOME, 1.0)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        here.put(a_spec(), OUTCOME, 2.0)
    assert here.get(a_spec()) == before and len(list(here.path(a_spec()).parent.iterdir())) == 1


# Leases


def test_a_lease_excludes_others_and_dies_with_its_process(tmp_path, here):
    holder = python("""
        import sys, time, test_records as t
        with t.Store().lease(t.a_spec()):
            open(sys.argv[1], "w").close()
            time.sleep(60)
    """, tmp_path, tmp_path / "held", wait=False)
    deadline = time.monotonic() + 30
    while not (tmp_path / "held").exists():
        assert time.monotonic() < deadline and holder.poll() is None
        time.sleep(0.02)
    with pytest.raises(Busy, match="KD sparsity=0.3 scores=random seed=0 is being run"), here.lease(a_spec()):
        pass
    with here.lease(a_spec(1)):
        pass
    holder.kill()
    holder.wait()
    with here.lease(a_spec()):
        pass


def test_two_processes_never_train_the_same_run(tmp_path, here):
    code = """
        import sys, time, test_records as t
        def run(spec):
            time.sleep(0.05)
            with open(sys.argv[1], "a") as file:
                file.write(f"{spec.seed}\\n")
            return t.OUTCOME
        t.ensure([t.a_spec(seed) for seed in range(8)], run)
    """
    processes = [python(code, tmp_path, tmp_path / "log", wait=False) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert sorted((tmp_path / "log").read_text().split()) == [str(seed) for seed in range(8)]
    assert not look_up([a_spec(seed) for seed in range(8)], here)[1]


# Looking up


def test_ensure_trains_what_is_missing_in_order_and_once(here, monkeypatch):
    monkeypatch.setattr(records, "Store", lambda: here)
    here.put(a_spec(1), OUTCOME, 1.0)
    ran = []

    def run(spec):
        ran.append(spec.seed)
        return OUTCOME

    asked = [a_spec(seed) for seed in (2, 1, 0, 2)]
    for _ in range(2):
        ensure(asked, run)
        assert [record["spec"]["seed"] for record in look_up(asked, here)[0]] == [2, 1, 0] and ran == [2, 0]


def test_an_exception_stores_nothing_for_its_run_and_keeps_the_others(here, monkeypatch):
    monkeypatch.setattr(records, "Store", lambda: here)

    def run(spec):
        if spec.seed == 1:
            raise RuntimeError("diverged")
        return OUTCOME

    with pytest.raises(RuntimeError, match="diverged"):
        ensure([a_spec(seed) for seed in range(3)], run)
    assert [here.get(a_spec(seed)) is not None for seed in range(3)] == [True, False, False]


def test_missing_runs_name_the_command():
    asked = [a_spec(0), a_spec(1), a_spec(0, task="rte")]
    command = "python -m kdutils.sweep 01_pilot --profile mini --task mrpc,rte"
    assert command_for(asked) == command
    assert str(MissingRuns(asked, command)) == (
        f"none of the 3 runs asked for is in the store; make them with: {command}")


def test_frame_flattens_a_record(here):
    made = here.put(a_spec(4, args={"layers": [1, 3], "teacher": {"sparsity": 0.3}}),
                    OUTCOME | {"losses": {"kd": 0.25}, "extra": {"params": {"encoder": 7}}}, 2.0)
    row = frame([made]).iloc[0].to_dict()
    device = row.pop("device")
    assert device and row == {
        "key": made["key"], "chapter": "01_pilot", "task": "mrpc", "profile": "mini", "method": "KD", "seed": 4,
        "layers": (1, 3), "teacher_sparsity": 0.3, "dev_f1": 0.8, "dev_accuracy": 0.7, "best_epoch": 2,
        "best_dev_f1": 0.9, "loss_kd": 0.25, "extra_params_encoder": 7, "seconds": 2.0,
    }
    assert frame([]).empty


def test_the_oldest_runs_of_a_task_began_with_its_first_teacher(here):
    teachers = {("mrpc", 3): None, ("mrpc", 2): "first", ("mrpc", 0): "other", ("sst2", 0): None}  # as they were made
    extra = {name: {"extra": {"teacher_weights": name}} if name else {} for name in teachers.values()}
    made = [here.put(a_spec(seed, task=task), OUTCOME | extra[name], 1.0) for (task, seed), name in teachers.items()]
    told = frame(made[::-1])[TEACHER]
    assert told[:1].isna().all() and list(told[1:]) == ["other", "first", "first"]


def test_the_store_is_found_from_below_the_repository(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.delenv("KDUTILS_RUNS", raising=False)
    assert Store().runs == tmp_path / "runs" and Store().published == tmp_path / "book" / "records"
    monkeypatch.setenv("KDUTILS_RUNS", "elsewhere")
    assert Store().runs == tmp_path / "elsewhere" and Store("x").runs == tmp_path / "x"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KDUTILS_RUNS", "~/runs")
    assert Store().runs == tmp_path / "home" / "runs"


@pytest.mark.parametrize("below", ["", "/deep/below"])
def test_a_store_that_can_be_no_folder_is_refused_in_one_line(tmp_path, monkeypatch, capsys, below):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KDUTILS_RUNS", f"{tmp_path}/file{below}")
    line = f"KDUTILS_RUNS: got '{tmp_path}/file{below}'; allowed: a folder ({tmp_path}/file is none)"
    with pytest.raises(ValueError) as error:
        Store()
    assert str(error.value) == line and error.value._render_traceback_() == [f"ValueError: {line}"]
    assert records.main(["status"]) == 2 and capsys.readouterr().err == line + "\n"


def test_a_store_that_cannot_be_written_is_refused_in_one_line(here, monkeypatch):
    here.check_writable()
    assert list(here.runs.iterdir()) == []

    def read_only(**kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.tempfile, "TemporaryFile", read_only)
    with pytest.raises(ValueError, match=r"KDUTILS_RUNS: got .*runs'; allowed: .* be written \(Permission denied\)"):
        here.check_writable()


def test_five_thousand_published_records_are_read_once_and_without_torch(tmp_path, here):
    made = here.put(a_spec(), OUTCOME | {"curve": [[i, 0.5] for i in range(50)]}, 1.0)
    lines = []
    for seed in range(5000):
        spec = a_spec(seed)
        lines.append(json.dumps(made | {"key": spec.key, "spec": asdict(spec)}, sort_keys=True))
    published = tmp_path / "published" / "01_pilot.jsonl"
    published.parent.mkdir()
    published.write_text("\n".join(lines) + "\n")
    done = python("""
        import json, sys, test_records as t
        from unittest import mock
        specs = [t.a_spec(seed) for seed in range(5000)]
        store = t.Store(published=sys.argv[1])
        with mock.patch("json.loads", wraps=json.loads) as read:
            for _ in range(2):
                found, missing = t.look_up(specs, store)
                assert len(found) == 5000 and not missing
        print(read.call_count)
        t.frame(found)
        assert "torch" not in sys.modules and "transformers" not in sys.modules
    """, tmp_path, published.parent)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 5000 + 2  # the record that lies in the working store is read each time


# Publishing


def copy(source, target):
    for path in source.runs.rglob("*.json"):
        there = target.runs / path.relative_to(source.runs)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(path.read_bytes())


def test_publishing_does_not_depend_on_the_order_of_merging(tmp_path):
    machines = [Store(tmp_path / name / "runs", tmp_path / name / "published") for name in "ab"]
    for number, machine in enumerate(machines):
        for seed in range(number * 3, number * 3 + 5):  # seeds 3 and 4 were run on both
            machine.put(a_spec(seed), OUTCOME, seconds=1.0 + number)
    texts = []
    for first, second in (machines, machines[::-1]):
        together = Store(tmp_path / f"{len(texts)}", tmp_path / f"published{len(texts)}")
        for machine in (first, second):  # one machine's records are published before the other's arrive
            copy(machine, together)
            publish(store=together)
        texts.append((together.published / "01_pilot.jsonl").read_bytes())
    assert texts[0] == texts[1]
    lines = [json.loads(line) for line in texts[0].decode().splitlines()]
    assert [line["key"] for line in lines] == sorted(a_spec(seed).key for seed in range(8))
    assert publish(store=together) == {"01_pilot": 8}
    assert (together.published / "01_pilot.jsonl").read_bytes() == texts[0]


def test_published_records_are_found_without_the_working_store(tmp_path, here):
    made = here.put(a_spec(), OUTCOME, 1.0)
    publish("01_pilot", here)
    fresh = Store(tmp_path / "empty", here.published)
    assert fresh.get(a_spec()) == made and fresh.get(a_spec(1)) is None
    Store(tmp_path / "more", here.published).put(a_spec(1), OUTCOME, 1.0)
    publish("01_pilot", Store(tmp_path / "more", here.published))
    assert fresh.get(a_spec(1))  # the file has changed under a store that had read it


@pytest.mark.parametrize("published_first", [True, False])
def test_a_run_made_in_two_places_is_looked_up_as_it_is_published(here, published_first):
    """The one made first, wherever it stands: a table and the page that looks a run up must not differ."""
    made = [here.put(a_spec(), OUTCOME | {"losses": {"total": value}}, 1 / value) for value in (0.5, 0.7)]
    for record in made if published_first else made[::-1]:  # the last one stays in the working store
        here.path(a_spec()).write_text(json.dumps(record))
        if not here.published.exists():
            publish(store=here)
    assert here.get(a_spec()) == here.records("01_pilot")[0] == made[0]
    publish(store=here)
    assert Store(here.runs / "none", here.published).get(a_spec()) == made[0]


def test_a_torn_published_line_is_named_and_skipped(here):
    for seed in range(2):
        here.put(a_spec(seed), OUTCOME, 1.0)
    publish(store=here)
    path = here.published / "01_pilot.jsonl"
    path.write_text(path.read_text()[:-40])
    with pytest.warns(UserWarning, match=r"01_pilot\.jsonl:2 is torn"):
        assert len(Store(here.runs / "none", here.published).records("01_pilot")) == 1


@pytest.mark.parametrize("line", ["<<<<<<< ours", '{"key": "torn', '{"foreign": 1}'])
def test_publishing_never_drops_a_published_line(here, line, monkeypatch, capsys):
    for seed in range(2):
        here.put(a_spec(seed), OUTCOME, 1.0)
    publish(store=here)
    path = here.published / "01_pilot.jsonl"
    text = path.read_text().replace("\n", f"\n{line}\n", 1)
    path.write_text(text)
    monkeypatch.setattr(records, "Store", lambda: here)
    for chapter in ([], ["--chapter", "01_pilot"]):
        with pytest.warns(UserWarning) if not chapter else contextlib.nullcontext():
            assert records.main(["publish", *chapter]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"{here.published}: got no record in 01_pilot.jsonl:2; allowed")
        assert said.count("\n") == 1
        assert path.read_text() == text
    path.write_text(text.replace(f"{line}\n", ""))
    assert publish(store=here) == {"01_pilot": 2}


def test_unknown_chapters_and_unpublished_profiles(here):
    here.put(a_spec(), OUTCOME, 1.0)
    here.put(a_spec(profile="smoke"), OUTCOME, 1.0)
    assert publish(store=here) == {"01_pilot": 1}
    here.put(a_spec(chapter="99_other"), OUTCOME, 1.0)
    with pytest.warns(UserWarning, match="99_other: records of no chapter, not published"):
        assert publish(store=here) == {"01_pilot": 1}
    for name in ("99_other", "pilot", ""):
        with pytest.raises(ValueError, match=f"chapter: got '{name}'; allowed: 00_choices"):
            publish(name, here)
    assert not (here.published / "99_other.jsonl").exists()


def test_records_of_an_older_recipe_are_stale_until_replaced(here, monkeypatch):
    here.put(a_spec(), OUTCOME, 1.0)
    publish(store=here)
    assert stale(here) == []
    older = here.model_path(a_spec())
    monkeypatch.setattr(store, "RECIPE", store.RECIPE + 1)
    monkeypatch.setattr(records, "RECIPE", store.RECIPE)
    assert here.get(a_spec()) is None and here.records("01_pilot", recipe=store.RECIPE) == []
    assert here.model_path(a_spec()) != older  # weights of the old recipe are not built on either
    assert [record["key"] for record in stale(here)] == [a_spec().key]
    here.put(a_spec(), OUTCOME, 2.0)
    assert here.get(a_spec())["seconds"] == 2.0 and stale(here) == []
    publish(store=here)
    assert Store(here.runs / "none", here.published).get(a_spec())["seconds"] == 2.0


def test_a_record_of_a_newer_recipe_is_an_error_and_not_a_missing_run(here, monkeypatch, capsys):
    made = here.put(a_spec(), OUTCOME, 1.0)
    here.path(a_spec()).write_text(json.dumps(made | {"recipe": records.RECIPE + 1}))
    line = f"recipe: got {records.RECIPE + 1} in the record 01_pilot/{a_spec().key}; allowed: at most {records.RECIPE} "
    monkeypatch.setattr(records, "Store", lambda: here)
    with pytest.raises(ValueError) as error:
        ensure([a_spec()], None)
    assert str(error.value).startswith(line) and error.value._render_traceback_() == [f"ValueError: {error.value}"]
    assert stale(here) == []
    monkeypatch.setattr(experiments, "plan", lambda chapter, profile: [a_spec()] if chapter == "01_pilot" else [])
    assert records.main(["status"]) == 2 and capsys.readouterr().err.startswith(line)


def test_a_chapter_whose_runs_are_never_found_stops(monkeypatch):
    rounds = []
    monkeypatch.setattr(experiments, "plan", lambda *_: [a_spec()])
    monkeypatch.setattr(figures, "look_up", lambda specs: ([], specs))
    monkeypatch.setattr(figures, "ensure", lambda specs, run: rounds.append(specs))
    with pytest.raises(RuntimeError, match="1 runs were made but are not in the store, such as 01_pilot mini mrpc KD"):
        figures.runs("01_pilot", "mini", train=True)
    assert rounds == [[a_spec()]]


def test_command_line(here, monkeypatch, capsys):
    class Pilot:
        @staticmethod
        def plan(profile, task):
            return [a_spec(seed, task=task, profile=profile) for seed in range(3)] if task == "mrpc" else []

    monkeypatch.setitem(sys.modules, "kdutils.experiments.pilot", Pilot)
    monkeypatch.setattr(experiments, "CHAPTERS", {"01_pilot": "pilot"})
    monkeypatch.setattr(records, "Store", lambda: here)
    here.put(a_spec(0), OUTCOME, 1.0)
    assert records.main(["status", "--profile", "mini"]) == 0
    assert capsys.readouterr().out.split("\n")[1].split() == ["01_pilot", "mini", "mrpc", "KD", "1", "0", "2"]
    assert records.main(["publish", "--chapter", "01_pilot"]) == 0
    assert capsys.readouterr().out == "01_pilot: 1 runs\n"
    assert records.main(["publish", "--chapter", "1"]) == 2
    assert capsys.readouterr().err.startswith("chapter: got '1'; allowed: 01_pilot")
    assert records.main(["status", "--profile", ""]) == 2
    assert capsys.readouterr().err == "profile: got ''; allowed: smoke, demo, mini, paper\n"


def test_unknown_chapter_profile_and_task_are_refused():
    with pytest.raises(ValueError, match="chapter: got '1'; allowed: 00_choices"):
        experiments.plan("1", "mini")
    with pytest.raises(ValueError, match="chapter: got '99_other'"):
        experiments.run(replace(a_spec(), chapter="99_other"))
