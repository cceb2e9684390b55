"""Where a sweep's runs are made: worker processes of this machine, or tasks of a Ray cluster.

Both pools are generators of events (spec, status, text) and leave every outcome to the store:

    done     the run's record is in the store
    failed   it raised, or its worker was killed too often; text is the traceback or the reason
    retried  its worker was killed and it will be tried again; text is the reason
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection

from kdutils.records import Busy, Spec, Store, run_once

Run = Callable[[Spec], dict]
Event = tuple[Spec, str, str]

POLL = 2.0  # seconds before a run that another process holds is asked for again
GRACE = 10.0  # seconds that an idle worker gets to end
USABLE = 0.9  # share of a GPU's memory given out; the processes' CUDA contexts take the rest
_spawn = multiprocessing.get_context("spawn")


def _cap_memory(per_gpu: int) -> None:
    """Keep this process to its share of a GPU, so that a large run fails alone and not its neighbours."""
    if per_gpu > 1:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(USABLE / per_gpu)


def _attempt(spec: Spec, run: Run, store: Store) -> tuple[str, str]:
    try:
        run_once(spec, run, store)
    except Busy as error:
        return "busy", str(error)
    except Exception:
        return "failed", traceback.format_exc()
    return "done", ""


def _serve(pipe: connection.Connection, run: Run, store: Store, per_gpu: int) -> None:
    """A worker process: answers specs with (status, text) until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, but ending is the sweep's to decide
    _cap_memory(per_gpu)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            pipe.send(_attempt(pipe.recv(), run, store))


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class _Slot:
    """Room for one worker process, which is kept between runs and replaced when it has died or its run has failed."""

    def __init__(self, environment: dict[str, str], *arguments):
        self.environment, self.arguments = environment, arguments
        self.process = self.pipe = self.spec = None

    def give(self, spec: Spec) -> None:
        if self.process is None:
            self.pipe, theirs = _spawn.Pipe()
            self.process = _spawn.Process(target=_serve, args=(theirs, *self.arguments), daemon=True)
            with _environment(self.environment):  # thread counts and GPUs are read when libraries load
                self.process.start()
            theirs.close()
        self.spec = spec
        with contextlib.suppress(BrokenPipeError):  # a worker that died idle is noticed in `answer`
            self.pipe.send(spec)

    def answer(self) -> Event:
        try:
            status, text = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            status, text = "killed", f"its worker process ended with exit code {self.process.exitcode}"
        spec, self.spec = self.spec, None
        if status in ("killed", "failed"):  # an exception may leave a GPU unusable to its process
            self.stop()
        return spec, status, text

    def stop(self) -> None:
        """End the process: at once where it has a run, else by itself, so that it tidies up."""
        if self.process is None:
            return
        if self.spec is not None:
            self.process.kill()
        self.pipe.close()
        self.process.join(timeout=GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process = self.pipe = None


def local(
    specs: Sequence[Spec], run: Run, store: Store, environments: Sequence[dict[str, str]], per_gpu: int, retries: int
) -> Iterator[Event]:
    """Run `specs` in as many spawned processes as there are `environments`, each with those variables set."""
    slots = [_Slot(environment, run, store, per_gpu) for environment in environments]
    waiting, busy, deaths = deque(specs), deque(), Counter()
    try:
        while waiting or busy or any(slot.spec for slot in slots):
            while busy and busy[0][0] <= time.monotonic():
                waiting.append(busy.popleft()[1])
            for slot in slots:
                if waiting and slot.spec is None:
                    slot.give(waiting.popleft())
            running = {slot.pipe: slot for slot in slots if slot.spec}
            for pipe in connection.wait(list(running), timeout=POLL if busy else None):
                spec, status, text = running[pipe].answer()
                if status == "busy":
                    busy.append((time.monotonic() + POLL, spec))
                    continue
                if status == "killed":
                    deaths[spec] += 1
                    status = "retried" if deaths[spec] <= retries else "failed"
                if status == "retried":
                    waiting.appendleft(spec)
                yield spec, status, text
    finally:
        for slot in slots:
            slot.stop()


def _ray_task(spec: Spec, run: Run, store: Store, per_gpu: int) -> None:
    _cap_memory(per_gpu)
    run_once(spec, run, store, wait=True)


def on_ray(
    specs: Sequence[Spec], run: Run, store: Store, environment: dict[str, str], threads: int, per_gpu: int, retries: int
) -> Iterator[Event]:
    """Run `specs` as tasks of the Ray cluster at RAY_ADDRESS, or of one started here; `per_gpu` of them share a GPU
    where the cluster has any. A task whose worker or node dies, or that raises, is tried again up to `retries` times.

    Every node needs this package and the store's folder. Raises ValueError where Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("backend: got 'ray', which is not installed; allowed: after pip install '.[sweep]'") from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        share = 1 / per_gpu if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(_ray_task).options(
            num_cpus=threads, num_gpus=share, max_retries=retries, retry_exceptions=True,
            runtime_env={"env_vars": environment},
        )  # fmt: skip
        pending = {task.remote(spec, run, store, per_gpu): spec for spec in specs}
        while pending:
            for reference in ray.wait(list(pending))[0]:
                spec = pending.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield spec, "failed", str(error)
                else:
                    yield spec, "done", ""
    finally:
        if ours:
            ray.shutdown()
