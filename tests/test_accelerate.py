"""Several processes for one run: two of them, over accelerate and gloo, train what one process trains."""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from kdutils import baselines, bert, data, distil, dropout, experiments, losses, profiles
from kdutils.experiments import common, ksm, stark
from kdutils.records import Store, run_once
from kdutils.spec import to_json

torch.set_num_threads(1)

STEPS = 9  # more than an epoch, whose last batch has 5 rows for two processes


def trained():
    """A tiny student distilled without dropout, and what `train` returned."""
    settings = profiles.settings("smoke", "synthetic", rows=101, batch_size=16, precision="fp32")
    rows = data.load("synthetic", settings).train
    model = bert.load("tiny", 2)
    for module in model.modules():
        if isinstance(module, dropout.Dropout):
            module.p = 0.0
    told = torch.randn(len(rows), 2, generator=torch.Generator().manual_seed(0))
    kd = distil.Plain(lambda batch, logits, _: losses.stark(logits, told[batch["index"]], batch["labels"]))
    return model, distil.train(model, rows, kd, settings, seed=3, max_steps=STEPS, device="cpu")


def stopped(rank):
    """The steps of a training that is stopped early, by a score that falls for the first process and rises for the
    second: left to themselves, one would wait in vain for the other's gradients."""
    settings = profiles.settings("smoke", "synthetic", rows=32, batch_size=16, precision="fp32")
    scores = iter(range(9, 0, -1) if rank == 0 else range(9))
    outcome = distil.train(
        bert.load("tiny", 2),
        data.load("synthetic", settings).train,
        distil.fine_tuning(),
        settings,
        seed=0,
        epochs=5,
        patience=1,
        evaluate=lambda *_: {"dev": {"accuracy": next(scores)}},
        device="cpu",
    )
    return outcome.steps


def main(folder):
    from accelerate import PartialState

    model, outcome = trained()
    about = {"curve": outcome.curve, "losses": outcome.losses, "processes": PartialState().num_processes}
    rank = int(os.environ["RANK"])
    about |= {"weights": model.state_dict(), "seed": torch.initial_seed(), "stopped": stopped(rank)}
    torch.save(about, os.path.join(folder, f"{rank}.pt"))


def launched(*program, **environment):
    """How two processes of `program` end, and what they print: `accelerate launch --multi_gpu` runs the same command,
    and on CPUs would ask for MPI."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""} | environment
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *program]
    ran = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=200)
    return ran.returncode, ran.stdout, ran.stderr


def test_two_processes_train_what_one_does(tmp_path):
    code, _, said = launched(__file__, str(tmp_path))
    assert code == 0, said[-2000:]
    model, outcome = trained()
    assert len(outcome.curve) == STEPS
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["processes"] == 2
        assert found["seed"] == 3 + rank, "each draws dropout's masks of its own"
        assert found["stopped"] == 2 * 2
        assert [loss for _, loss in found["curve"]] == pytest.approx([loss for _, loss in outcome.curve], abs=1e-5)
        assert found["losses"] == pytest.approx(outcome.losses, abs=1e-5)
        for name, value in model.state_dict().items():
            assert torch.allclose(found["weights"][name], value, rtol=0, atol=1e-5), name


FEW = {"rows": 101, "epochs": 1, "teacher_epochs": 1}


def listed(folder, chapter, method, **args):
    """A run of a few steps, in a file of specs."""
    spec = common.make(chapter, "smoke", "synthetic", method, 0, args, **FEW)
    return spec, swept(folder, spec)


def swept(folder, *specs):
    """The program that makes `specs`, which it finds in a file."""
    (folder / "list.jsonl").write_text("\n".join(to_json(asdict(spec)) for spec in specs))
    return ["-m", "kdutils.sweep", "--list", str(folder / "list.jsonl")]


def test_two_processes_make_one_record_of_a_run_together(tmp_path):
    spec, sweep = listed(tmp_path, "01_pilot", "finetune", layers=4)
    code, told, said = launched(*sweep, KDUTILS_RUNS=str(tmp_path / "runs"))
    assert code == 0 and told.count("1 run, 0 in the store before, 0 failed") == 1, said[-2000:]
    store = Store(tmp_path / "runs")
    assert [path.stem for path in store.runs.glob("01_pilot/*.json")] == [spec.key]
    assert store.get(spec)["metrics"]["dev"].keys() >= {"accuracy"} and store.model_path(spec).exists()


def test_two_processes_refuse_what_depends_on_more_than_a_batch(tmp_path):
    _, sweep = listed(tmp_path, "05_knowledge_probes", "fixed", knowledge="FinK")
    code, told, _ = launched(*sweep, KDUTILS_RUNS=str(tmp_path / "runs"))
    assert code == 1 and "objective: got Selective with several processes; allowed: Plain" in told


@pytest.mark.parametrize(
    "objective", [baselines.ckd(None, [(1, 2)], "mrpc"), ksm.dynamic_kd(None)], ids=["CKD", "Dynamic-KD"]
)
def test_no_process_takes_a_share_where_rows_are_weighed_by_each_other(monkeypatch, objective):
    monkeypatch.setattr(distil.processes, "state", lambda cpu: SimpleNamespace(device="cpu"))
    with pytest.raises(ValueError, match="objective: got one of whole batches with several processes; allowed: Plain"):
        distil.train(None, [], objective, profiles.Settings(), seed=0, device="cpu")


def test_two_processes_make_weights_again_whose_record_is_there(tmp_path, monkeypatch):
    """As on a machine that has the published records only: the first process must not wait, in a training that both
    make, for one that waits for its lease. DKD counts steps, which both processes do alike."""
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path / "runs"))
    specs = [stark.sparse("smoke", "synthetic", 0, 0.3), stark.one("smoke", "synthetic", "DKD", 0)]
    specs = [replace(spec, settings=spec.settings | FEW) for spec in specs]
    teacher = common.teacher_spec("smoke", "synthetic", common.settings_of(specs[0]))
    for spec in (teacher, stark.teachers.trial(specs[0])):
        run_once(spec, experiments.run, Store())
    for path in (*Store().runs.glob("models/*"), *Store().runs.glob("cache/*")):
        path.unlink()
    code, told, said = launched(*swept(tmp_path, *specs), KDUTILS_RUNS=str(tmp_path / "runs"))
    assert code == 0 and "2 run, 0 in the store before, 0 failed" in told, said[-2000:]
    assert Store().model_path(teacher).exists() and all(Store().get(spec) for spec in specs)
    assert len(list(Store().runs.glob("cache/scores-*.safetensors"))) == 1


if __name__ == "__main__":
    main(sys.argv[1])
