"""KSM's networks: feature networks and actor (together the selector), critic, replay memory, and their updates.

The paper's equations leave target networks, replay and the sign of an update open (its eq. 7 is no descent direction by
itself, its eqs. 9 and 10 give one critic two targets). `Agent.learn` is standard deterministic policy gradient on one
combined reward; `Agent.learn_literal` is the paper's text.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from kdutils import checkpoints

KINDS = 4  # entries of an action
HIDDEN, FEATURES = 64, 8  # units and outputs of a feature network


@dataclass(frozen=True)
class Choices:
    """The selection module's hyper-parameters: the paper's (Table 5), its ablations as switches, and those that it
    leaves open (`episodes`, `proportion`, and all from `literal` on)."""

    hard: bool = False  # the student sees g(a) of eq. 5; the critic sees a
    threshold: float = 0.2  # lambda of eq. 5, of {0.1, 0.2, 0.3}
    phase: int = 32  # k, training steps in a phase, of {32, 64, 96, 128}
    alpha: float = 0.1  # scale of the exploration reward, of {0.1, 0.2}
    gamma: float = 0.98
    lr: float = 2e-4  # of actor and critic
    episodes: int = 4  # K; "until it converges" in the paper
    multi_phase: bool = True  # False: a reward at every step
    exploration: bool = True  # False: no exploration reward
    proportion: bool = False  # True: r^e is standardised with r^p / k, and so as large beside it as in the paper
    reward: str = "loss"  # whose fall (loss) or rise (accuracy, f1) on held-out rows is the phase reward
    literal: bool = False  # the paper's updates instead of the standard ones
    patience: int = 3  # episodes without a better student after which stage one ends
    noise: float = 0.1  # standard deviation of the noise on actions in stage one
    warmup: int = 64  # first steps of stage one, with uniformly random actions
    memory: int = 10_000  # replayed steps
    minibatch: int = 32  # replayed steps an update
    polyak: float = 0.005  # share of the networks that their targets take over at an update
    # Weight of the mean squared logit in the actor's loss: a sigmoid at 0 or 1 learns no more. Chosen on the toy of
    # tests/test_ksm.py and on no task: with 0.03 and 0.05 more seeds kept the poison on, and no fewer lost good types.
    calm: float = 0.01
    clip: float = 1.0  # global gradient norm of an update

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold: got {self.threshold}; allowed: 0 to 1")
        for name, least in {"phase": 1, "episodes": 1, "patience": 1, "warmup": 0, "memory": 1, "minibatch": 1}.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name}: got {value!r}; allowed: a whole number from {least}")
        if self.reward not in ("loss", "accuracy", "f1"):
            raise ValueError(f"reward: got {self.reward!r}; allowed: loss, accuracy, f1")


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers of the given sizes with ReLU between them."""
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Selector(nn.Module):
    """What stage two needs: both feature networks (eq. 2, two layers each, `width` to
    8) and the actor (eq. 3, three layers, 256 hidden units). It reads [CLS] states [n,
    batch, width] of student and teacher and returns soft actions [n, 4]; a state s_t is
    the batch's feature vectors one after the other, so `batch` is fixed."""

    def __init__(self, width: int, batch: int):
        super().__init__()
        self.width, self.batch = width, batch
        self.student_features = mlp(width, HIDDEN, FEATURES)
        self.teacher_features = mlp(width, HIDDEN, FEATURES)
        self.actor = mlp(2 * batch * FEATURES, 256, 256, KINDS)

    @property
    def state_size(self) -> int:
        return self.actor[0].in_features

    def features(self, student: torch.Tensor,
                 teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both halves of the states, [n, 8 batch] each."""
        own = student.shape[1:] == (self.batch, self.width)
        if not own or teacher.shape != student.shape:
            got = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
            wanted = f"twice (n, {self.batch}, {self.width})"
            raise ValueError(f"states: got {got}; allowed: {wanted}")
        s, t = self.student_features(student), self.teacher_features(teacher)
        return s.flatten(1), t.flatten(1)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.actor(torch.cat(self.features(student, teacher), 1)))


def save(selector: Selector, path: Path) -> None:
    """Write a selector to a safetensors file, atomically."""
    about = {"width": str(selector.width), "batch": str(selector.batch)}
    checkpoints.write(selector.state_dict(), path, about)


def restore(path: Path) -> Selector:
    """The selector that `save` wrote."""
    tensors, about = checkpoints.read(path)
    selector = Selector(int(about["width"]), int(about["batch"]))
    selector.load_state_dict(tensors)
    return selector.eval()


def hard_action(action: torch.Tensor, threshold: float) -> torch.Tensor:
    """g of eq. 5: 1 where `action` reaches `threshold`, else 0."""
    return (action >= threshold).to(action.dtype)


def novelty(action: torch.Tensor, previous: torch.Tensor, alpha: float, hard: bool) -> float:
    """The exploration reward of `action` [4] against the previous phase's actions [k, 4]; 0 where there is none.

    Soft (eq. 12): alpha (1 - mean cosine similarity). Hard (eq. 13): alpha (1 - share of equal actions).
    """
    if not len(previous):
        return 0.0
    same = (previous == action).all(1).float() if hard else F.cosine_similarity(previous, action[None], dim=1)
    return alpha * (1 - float(same.mean()))


def td_target(reward: torch.Tensor, following: torch.Tensor, done: torch.Tensor, gamma: float) -> torch.Tensor:
    """r + gamma Q(s', a'), and r alone where the episode is over; all [n]."""
    return reward + gamma * following * ~done


def literal_losses(values: torch.Tensor, last: torch.Tensor, explored: torch.Tensor, reward: float,
                   gamma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The paper's two critic losses of one phase, (eq. 10, eq. 9).

    values [k]: Q of the phase's steps; last (): Q of the step after it (0 at the end), without a gradient; explored
    [k]: exploration rewards; reward: the phase's. Eq. 11 estimates a step's reward as (Q_t - Q_{t+1}) / gamma^t; t
    counts from the start of the phase, because counted over an episode gamma^t underflows. Eq. 8's target
    gamma^t r + Q_{t+1} gives no gradient.
    """
    discount = gamma ** torch.arange(len(values), device=values.device, dtype=values.dtype)
    following = torch.cat([values[1:], last.detach().reshape(1)])
    phase = ((values - following) / discount).sum()
    return (reward - phase) ** 2, F.mse_loss(values, discount * explored + following.detach())


@dataclass
class Step:
    """One step of stage one: both models' [CLS] states [batch, width], the action [4], its exploration reward, its
    share of the phase reward (None until the phase is over), and whether the episode ends here."""

    student: torch.Tensor
    teacher: torch.Tensor
    action: torch.Tensor
    explored: float
    shared: float | None = None
    done: bool = False


class Memory:
    """The last `capacity` steps in order; a step's successor is the next one."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.steps: list[Step] = []

    def push(self, step: Step) -> None:
        """Keep `step`, and forget the oldest where there are too many."""
        self.steps.append(step)
        del self.steps[: -self.capacity]

    def sample(self, size: int, generator: torch.Generator) -> tuple[list[Step], list[Step]]:
        """`size` rewarded steps, drawn with replacement, and their successors (an episode's last step: itself)."""
        usable = len(self.steps)
        while usable and (self.steps[usable - 1].shared is None or
                          (usable == len(self.steps) and not self.steps[-1].done)):
            usable -= 1
        if not usable:
            raise ValueError("memory: got no rewarded step; allowed: one or more")
        chosen = torch.randint(usable, (size,), generator=generator).tolist()
        steps = [self.steps[i] for i in chosen]
        return steps, [s if s.done else self.steps[i + 1] for i, s in zip(chosen, steps, strict=True)]


class Agent:
    """Selector, critic and their updates. Nothing here draws from torch's global generator."""

    def __init__(self, width: int, batch: int, choices: Choices, seed: int, device: str | torch.device = "cpu"):
        self.choices = choices
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.selector = Selector(width, batch).to(device)
            self.critic = mlp(self.selector.state_size + KINDS, 256, 256, 1).to(device)
        self.target = copy.deepcopy(self.selector), copy.deepcopy(self.critic)
        # The student's feature network learns with the actor, the teacher's with the critic (section 5.3.2).
        self.actor_parameters = [*self.selector.actor.parameters(), *self.selector.student_features.parameters()]
        self.critic_parameters = [*self.critic.parameters(), *self.selector.teacher_features.parameters()]
        self.actor_optimiser = torch.optim.Adam(self.actor_parameters, lr=choices.lr, fused=True)
        self.critic_optimiser = torch.optim.Adam(self.critic_parameters, lr=choices.lr, fused=True)
        self.memory = Memory(choices.memory)
        self.generator = torch.Generator().manual_seed(seed)
        self.device, self.seen, self.rewards = device, 0, []

    @torch.no_grad()
    def act(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The action [4] for one batch's states [batch, width] in stage one: uniform in the first `warmup` steps, then
        the actor's with noise."""
        self.seen += 1
        if self.seen <= self.choices.warmup:
            return torch.rand(KINDS, generator=self.generator)
        action = self.selector(student[None].float(), teacher[None].float())[0].cpu()
        return (action + self.choices.noise * torch.randn(KINDS, generator=self.generator)).clamp(0, 1)

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the rewards of a step so far, r^p / k each, by which the updates standardise
        them (0 and 1 until there are two). Divided by the deviation of r^p instead, they would shrink with k; with
        their mean, which all actions earn alike, the critic is long busy with a constant."""
        if len(self.rewards) < 2:
            return 0.0, 1.0
        rewards = torch.tensor(self.rewards, dtype=torch.float64)
        return float(rewards.mean()), max(float(rewards.std()), 1e-8)

    @staticmethod
    def values(critic, halves, actions: torch.Tensor) -> torch.Tensor:
        """Q [n] of states, given as their `halves` (see `Selector.features`), and `actions` [n, 4]."""
        return critic(torch.cat([*halves, actions], 1))[:, 0]

    def _stack(self, steps: list[Step]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        parts = (torch.stack([getattr(s, name) for s in steps]) for name in ("student", "teacher", "action"))
        return tuple(p.to(self.device).float() for p in parts)

    def combined(self, steps: list[Step]) -> list[float]:
        """Each step's one reward: r^p / k, standardised, plus r^e. On SST-2 the deviation is about 0.002, so r^e weighs
        a few hundred times less than where both are raw, as in the paper, or both are divided (`proportion`)."""
        mean, deviation = self.moments
        divided_by = deviation if self.choices.proportion else 1.0
        return [(step.shared - mean) / deviation + step.explored / divided_by for step in steps]

    def learn(self) -> torch.Tensor:
        """One standard update on replayed steps with their `combined` rewards; the target
        networks give a' and Q(s', a'). Returns the critic's loss, detached: its number
        would be waited for."""
        steps, following = self.memory.sample(self.choices.minibatch, self.generator)
        student, teacher, action = self._stack(steps)
        reward = torch.tensor(self.combined(steps), device=self.device)
        done = torch.tensor([s.done for s in steps], device=self.device)
        with torch.no_grad():
            selector, critic = self.target
            states = self._stack(following)[:2]
            values = self.values(critic, selector.features(*states), selector(*states))
            target = td_target(reward, values, done, self.choices.gamma)
        v_student, v_teacher = self.selector.features(student, teacher)
        value = self.values(self.critic, (v_student.detach(), v_teacher), action)
        loss = F.mse_loss(value, target)
        self._step(self.critic_optimiser, self.critic_parameters, loss)
        self._improve(student, teacher)
        self._follow()
        return loss.detach()

    def learn_literal(self, phase: list[Step], after: Step | None) -> torch.Tensor:
        """The paper's update at the end of a phase: eqs. 9 and 10 on the critic, eq. 7 on the actor, on the phase's
        steps alone, without target networks; `after` is the next step, None at the end of the episode."""
        student, teacher, action = self._stack(phase)
        v_student, v_teacher = self.selector.features(student, teacher)
        values = self.values(self.critic, (v_student.detach(), v_teacher), action)
        last = torch.zeros((), device=self.device)
        if after:
            *states, taken = self._stack([after])
            last = self.values(self.critic, self.selector.features(*states), taken)[0]
        explored = torch.tensor([s.explored for s in phase], device=self.device)
        loss = sum(literal_losses(values, last, explored, sum(s.shared for s in phase), self.choices.gamma))
        self._step(self.critic_optimiser, self.critic_parameters, loss)
        self._improve(student, teacher)
        return loss.detach()

    def _improve(self, student: torch.Tensor, teacher: torch.Tensor) -> None:
        """Eq. 7: raise Q(s, mu(s)). The critic is left alone, and its s is a given: only mu carries the gradient."""
        v_student, v_teacher = self.selector.features(student, teacher)
        state = torch.cat([v_student, v_teacher.detach()], 1)
        logits = self.selector.actor(state)
        loss = -self.values(self.critic, (state.detach(),), torch.sigmoid(logits)).mean()
        if not self.choices.literal:
            loss = loss + self.choices.calm * logits.square().mean()
        self._step(self.actor_optimiser, self.actor_parameters, loss)

    def _step(self, optimiser, parameters, loss: torch.Tensor) -> None:
        optimiser.zero_grad()
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = g
        torch.nn.utils.clip_grad_norm_(parameters, self.choices.clip)
        optimiser.step()

    @torch.no_grad()
    def _follow(self) -> None:
        for target, source in zip(self.target, (self.selector, self.critic), strict=True):
            torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), self.choices.polyak)
