"""Where a sweep's runs are made: worker processes here, tasks of a Ray cluster, or all processes of a launch.

All are generators of events (spec, status, text) and leave every outcome to the store:

    done     the run's record is in the store
    failed   it raised, or its worker was killed too often; text is the traceback or the reason
    retried  its worker was killed and it will be tried again; text is the reason

Work is handed out in packs, lists of specs that are trained at once; a list of one is a run by itself.
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
from dataclasses import dataclass
from multiprocessing import connection
from unittest import mock

from tqdm import tqdm

from kdutils.records import Busy, Spec, Store, run_once

Run = Callable[[Spec], dict]
Event = tuple[Spec, str, str]
Tell = Callable[[Event], None]

POLL = 2.0  # seconds before a run that another process holds is asked for again
GRACE = 10.0  # seconds that an idle worker gets to end
MOST = 256  # runs of a pack that is as large as fits: each holds a file, its lease, open
USABLE = 0.9  # share of a GPU's memory given out; the processes' CUDA contexts take the rest
_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Packed:
    """How packs are run: `run` as `experiments.run_pack`; `room` as `experiments.room`, or None where every pack that
    is handed out is trained whole."""

    run: Callable
    room: Callable[[Spec], int] | None = None


def _cap_memory(per_gpu: int) -> None:
    """Keep this process to its share of a GPU, so that a large run fails alone and not its neighbours."""
    if per_gpu > 1:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(USABLE / per_gpu)


def _attempt(specs: list[Spec], run: Run, packed: Packed, store: Store, tell: Tell) -> None:
    """Run `specs`, as many at once as there is room for, and tell one event of each. What raises for a whole part fails
    that part; the rest, told as busy, waits for a fresh process."""
    left, part = dict.fromkeys(specs), specs[:1]

    def told(spec: Spec, status: str, text: str = "") -> None:
        del left[spec]
        tell((spec, status, text))

    try:
        fits = min(packed.room(specs[0]) if len(specs) > 1 and packed.room else len(specs), MOST)
        size = -(-len(specs) // -(-len(specs) // fits))  # parts of equal size
        for start in range(0, len(specs), size):
            part = specs[start : start + size]
            _attempt_part(part, run, packed, store, told)
    except Exception:
        text = traceback.format_exc()
        for spec in list(left):
            told(spec, *(("failed", text) if spec in part else ("busy", "")))


def _attempt_part(specs: list[Spec], run: Run, packed: Packed, store: Store, told: Callable) -> None:
    """Run at once, under their leases, those of `specs` that are neither in the store nor leased elsewhere."""
    with contextlib.ExitStack() as leases:
        mine = []
        for spec in specs:
            try:
                leases.enter_context(store.lease(spec))
            except Busy as error:
                told(spec, "busy", str(error))
                continue
            told(spec, "done") if store.get(spec) else mine.append(spec)
        started = time.perf_counter()

        def finished(made: dict[Spec, dict | Exception]) -> None:
            nonlocal started
            share, started = (time.perf_counter() - started) / len(made), time.perf_counter()
            # all are stored before any is told: the other end may be gone
            for event in [(spec, *_keep(spec, outcome, share, store)) for spec, outcome in made.items()]:
                told(*event)

        if len(mine) == 1:
            finished({mine[0]: run(mine[0])})
        elif mine:
            packed.run(mine, finished)


def _keep(spec: Spec, outcome: dict | Exception, seconds: float, store: Store) -> tuple[str, str]:
    try:
        if isinstance(outcome, Exception):
            raise outcome
        store.put(spec, outcome, seconds)
    except Exception:
        return "failed", traceback.format_exc()
    return "done", ""


def _serve(pipe: connection.Connection, run: Run, packed: Packed | None, store: Store, per_gpu: int, lock) -> None:
    """A worker process: answers packs with an event of each spec until the other end is gone. `lock` is for whoever
    draws a bar."""
    tqdm.set_lock(lock)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, but ending is the sweep's to decide
    _cap_memory(per_gpu)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            _attempt(pipe.recv(), run, packed, store, pipe.send)


class _Slot:
    """Room for one worker process, which is kept between packs and replaced when it has died or a run has failed.

    `left` are the specs of its pack that it has not answered for, `busy` those that another process holds."""

    def __init__(self, environment: dict[str, str], *arguments):
        self.environment, self.arguments = environment, arguments
        self.process = self.pipe = None
        self.left: list[Spec] = []
        self.busy: list[Spec] = []
        self.failed = False

    def give(self, specs: list[Spec]) -> None:
        if self.process is None:
            self.pipe, theirs = _spawn.Pipe()
            self.process = _spawn.Process(target=_serve, args=(theirs, *self.arguments), daemon=True)
            with mock.patch.dict(os.environ, self.environment):  # thread counts and GPUs are read when libraries load
                self.process.start()
            theirs.close()
        self.left, self.busy, self.failed = specs, [], False
        with contextlib.suppress(BrokenPipeError):  # a worker that died idle is noticed in `answer`
            self.pipe.send(specs)

    def answer(self) -> list[Event]:
        """The next event, or one of each spec that a killed worker leaves."""
        try:
            events = [self.pipe.recv()]
        except (EOFError, ConnectionResetError):
            self.process.join()
            text = f"its worker process ended with exit code {self.process.exitcode}"
            events = [(spec, "killed", text) for spec in self.left]
        told = {spec for spec, _, _ in events}
        self.left = [spec for spec in self.left if spec not in told]
        self.busy += [spec for spec, status, _ in events if status == "busy"]
        self.failed |= any(status in ("killed", "failed") for _, status, _ in events)
        if self.failed and not self.left:  # an exception may leave a GPU unusable to its process
            self.stop()
        return events

    def stop(self) -> None:
        """End the process: at once where it has runs, else by itself, so that it tidies up."""
        if self.process is None:
            return
        if self.left:
            self.process.kill()
        self.pipe.close()
        self.process.join(timeout=GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process = self.pipe = None


def local(
    packs: Sequence[list[Spec]], run: Run, store: Store, environments: Sequence[dict[str, str]], per_gpu: int,
    retries: int, packed: Packed | None = None,
) -> Iterator[Event]:
    """Run `packs` in as many spawned processes as there are `environments`, each with those variables set; `packed`
    runs those of more than one spec. What is left of a pack whose worker was killed is tried again in two halves."""
    lock = _spawn.RLock()
    tqdm.set_lock(lock)
    slots = [_Slot(environment, run, packed, store, per_gpu, lock) for environment in environments]
    waiting, busy, deaths = deque(packs), deque(), Counter()
    try:
        while waiting or busy or any(slot.left for slot in slots):
            while busy and busy[0][0] <= time.monotonic():
                waiting.append(busy.popleft()[1])
            for slot in slots:
                if waiting and not slot.left:
                    slot.give(waiting.popleft())
            running = {slot.pipe: slot for slot in slots if slot.left}
            for pipe in connection.wait(list(running), timeout=POLL if busy else None):
                slot, again = running[pipe], []
                for spec, status, text in slot.answer():
                    if status == "killed":
                        deaths[spec] += 1
                        status = "retried" if deaths[spec] <= retries else "failed"
                    if status == "retried":
                        again.append(spec)
                    if status != "busy":
                        yield spec, status, text
                half = -(-len(again) // 2)
                waiting.extendleft(part for part in (again[half:], again[:half]) if part)
                if slot.busy and not slot.left:
                    busy.append((time.monotonic() + POLL, slot.busy))
    finally:
        for slot in slots:
            slot.stop()


def together(specs: Sequence[Spec], run: Run, store: Store) -> Iterator[Event]:
    """Run `specs` one after the other in this process and in those launched beside it, which all train each run."""
    for spec in specs:
        try:
            run_once(spec, run, store)
        except Exception:
            yield spec, "failed", traceback.format_exc()
        else:
            yield spec, "done", ""


def _ray_task(spec: Spec, run: Run, store: Store, per_gpu: int) -> None:
    _cap_memory(per_gpu)
    run_once(spec, run, store)


def on_ray(
    specs: Sequence[Spec], run: Run, store: Store, environment: dict[str, str], threads: int, per_gpu: int, retries: int
) -> Iterator[Event]:
    """Run `specs` as tasks of the Ray cluster at RAY_ADDRESS, or of one started here; `per_gpu` of them share a GPU
    where the cluster has any. A task whose worker or node dies, or that raises, is tried again up to `retries` times.

    Every node needs this package and the store's folder.
    """
    import ray

    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        share = 1 / per_gpu if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(_ray_task).options(
            num_cpus=threads, num_gpus=share, max_retries=retries, retry_exceptions=True,
            runtime_env={"env_vars": environment},
        )
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
