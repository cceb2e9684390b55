"""Several processes for one run: two of them, over accelerate and gloo, train what one process trains."""

import os
import subprocess
import sys

import pytest
import torch

from kdutils import bert, data, distil, dropout, losses, profiles

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


def main(folder):
    from accelerate import PartialState

    model, outcome = trained()
    about = {"curve": outcome.curve, "losses": outcome.losses, "processes": PartialState().num_processes}
    torch.save(about | {"weights": model.state_dict()}, os.path.join(folder, f"{os.environ['RANK']}.pt"))


def test_two_processes_train_what_one_does(tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__,
               str(tmp_path)]  # what `accelerate launch --multi_gpu` runs; on CPUs it would ask for MPI
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr[-2000:]
    model, outcome = trained()
    assert len(outcome.curve) == STEPS
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["processes"] == 2
        assert [loss for _, loss in found["curve"]] == pytest.approx([loss for _, loss in outcome.curve], abs=1e-5)
        assert found["losses"] == pytest.approx(outcome.losses, abs=1e-5)
        for name, value in model.state_dict().items():
            assert torch.allclose(found["weights"][name], value, rtol=0, atol=1e-5), name


if __name__ == "__main__":
    main(sys.argv[1])
