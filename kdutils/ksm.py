"""KSM's two stages: training the selection module over episodes (Algorithm 2), and distilling with it (Algorithm 1)."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from kdutils.agents import Agent, Choices, Selector, Step, hard_action, novelty
from kdutils.knowledge import thirds


class Learning:
    """Stage one's policy for one episode: a `select` for `knowledge.Selective` that explores, and a hook for
    `distil.train` that rewards and updates the agent at the end of each phase.

    `measure(model)` says how good the student is, larger being better: minus the mean cross-entropy, or a metric, on
    rows that it does not train on. A phase's reward is its rise. `total` is the episode's number of steps.
    """

    def __init__(self, agent: Agent, measure: Callable, total: int):
        self.agent, self.choices, self.measure, self.total = agent, agent.choices, measure, total
        self.every = self.choices.phase if self.choices.multi_phase else 1
        self.actions: list[torch.Tensor] = []
        self.phase: list[Step] = []
        self.rewards: list[float] = []
        self.losses: list[torch.Tensor] = []
        self.quality = self.start = None

    def begin(self, model) -> None:
        """Measure the student before its first step."""
        self.quality = self.start = self.measure(model)

    def __call__(self, step: int, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        action = self.agent.act(student, teacher)
        taken = hard_action(action, self.choices.threshold) if self.choices.hard else action
        explored = self._novelty(taken, step)
        self.actions.append(taken)
        now = Step(student.bfloat16(), teacher.bfloat16(), action, explored)
        self.agent.memory.push(now)
        if self.phase and self.phase[-1].shared is not None:  # the phase before is over, and its successor is here
            self._learn(now)
            self.phase = []
        self.phase.append(now)
        return taken

    def _novelty(self, taken: torch.Tensor, step: int) -> float:
        if not self.choices.exploration:
            return 0.0
        first = step - step % self.choices.phase  # of this phase
        before = self.actions[max(0, first - self.choices.phase) : first]
        return novelty(taken, torch.stack(before) if before else taken[:0, None], self.choices.alpha, self.choices.hard)

    def after_step(self, step: int, model) -> None:
        """`step` counts from 1."""
        if step % self.every and step != self.total:
            return
        quality = self.measure(model)
        reward, self.quality = quality - self.quality, quality
        self.rewards.append(reward)
        shared = reward / len(self.phase)
        self.agent.rewards.append(shared)
        for s in self.phase:
            s.shared = shared
        if step == self.total:
            self.phase[-1].done = True
            self._learn(None)

    def _learn(self, after: Step | None) -> None:
        """The standard updates, as many as the phase had steps; or the literal one."""
        if self.choices.literal:
            self.losses.append(self.agent.learn_literal(self.phase, after))
        else:
            self.losses += [self.agent.learn() for _ in self.phase]

    def report(self) -> dict:
        """The episode in numbers: the student's quality before and after, phase rewards, mean actions by thirds, the
        critic's mean loss."""
        losses = torch.stack(self.losses).tolist()
        return {"start": self.start, "quality": self.quality, "rewards": [round(r, 6) for r in self.rewards],
                "chosen": thirds(torch.stack(self.actions).tolist()), "critic": sum(losses) / len(losses)}


def train(agent: Agent, episode: Callable[[Learning], None], measure: Callable, total: int) -> list[dict]:
    """Algorithm 2. `episode(learning)` resets the student and its optimiser and trains it with `learning` as its policy
    and hook. Ends after the chosen number of episodes, or once `patience` in a row have left no better student (the
    paper: "until the performance of the student model converges"); returns every episode's report, with its seconds.

    The agent is left as the last episode made it, which is what Algorithm 2 returns, and not as after the best one: an
    episode's student is that of a noisy policy that changed all the while, so it does not rate the selector at its end.
    """
    reports: list[dict] = []
    for _ in range(agent.choices.episodes):
        started = time.perf_counter()
        learning = Learning(agent, measure, total)
        episode(learning)
        reports.append(learning.report() | {"seconds": time.perf_counter() - started})
        qualities = [r["quality"] for r in reports]
        if len(qualities) - 1 - qualities.index(max(qualities)) >= agent.choices.patience:
            break
    return reports


class Trained:
    """Stage two's policy: a trained selector's own action, without noise, reward or update."""

    def __init__(self, selector: Selector, choices: Choices):
        self.selector, self.choices = selector.eval(), choices

    @torch.no_grad()
    def __call__(self, step: int, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        action = self.selector(student[None].float(), teacher[None].float())[0].cpu()
        return hard_action(action, self.choices.threshold) if self.choices.hard else action
