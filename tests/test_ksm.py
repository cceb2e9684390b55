"""The knowledge selection module: rewards, targets, updates, episodes, and its runs' plan."""

import copy
from dataclasses import replace

import pytest
import torch

from kdutils import agents, augment, bert, checkpoints, data, distil, knowledge, ksm, profiles, replicas, tasks
from kdutils import teacher as teacher_module
from kdutils.agents import Agent, Choices, Memory, Step, hard_action, literal_losses, novelty, td_target
from kdutils.experiments import common
from kdutils.experiments import ksm as runs
from kdutils.teacher import ask

torch.set_num_threads(1)
WIDTH, BATCH = 6, 4


def some_states(seed=0, count=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, BATCH, WIDTH, generator=generator) for _ in range(count)]


# -------------------------------------------------------------------------------------------- rewards, targets, actions


def three_steps(**choices):
    """An episode of three steps in phases of two, on a student whose quality is given."""
    qualities = iter([-1.0, -0.7, -0.6])
    agent = Agent(WIDTH, BATCH, Choices(phase=2, minibatch=2, **choices), seed=0)
    learning = ksm.Learning(agent, lambda model: next(qualities), total=3)
    learning.begin(None)
    for step, (student, teacher) in enumerate(some_states(count=3)):
        learning(step, student, teacher)
        learning.after_step(step + 1, None)
    return agent, learning


def test_phase_rewards_of_a_three_step_episode():
    agent, learning = three_steps()
    assert learning.rewards == pytest.approx([0.3, 0.1])  # minus 1 to minus 0.7 over two steps, then to minus 0.6
    assert [s.shared for s in agent.memory.steps] == pytest.approx([0.15, 0.15, 0.1])
    assert [s.done for s in agent.memory.steps] == [False, False, True]
    assert [s.explored > 0 for s in agent.memory.steps] == [False, False, True]  # there is no phase before the first
    assert agent.rewards == pytest.approx([0.15, 0.1])
    assert agent.moments == pytest.approx((0.125, 0.05 / 2**0.5))
    assert learning.report()["quality"] - learning.report()["start"] == pytest.approx(0.4)


@pytest.mark.parametrize("proportion, divided_by", [(False, 1.0), (True, 0.05 / 2**0.5)])
def test_the_one_reward_of_a_step_by_hand(proportion, divided_by):
    """r^p / k is standardised; r^e, 0.4, is added as it is or, in the paper's proportion, divided alike."""
    agent, _ = three_steps(proportion=proportion)
    step = agents.Step(*some_states(count=1)[0], torch.ones(4), explored=0.4, shared=0.15)
    assert agent.combined([step]) == [pytest.approx((0.15 - 0.125) / (0.05 / 2**0.5) + 0.4 / divided_by)]


def test_the_moments_of_rewards_are_computed_once_an_update(monkeypatch):
    agent, _ = three_steps()
    moments, asked = agent.moments, []
    monkeypatch.setattr(Agent, "moments", property(lambda self: asked.append(1) or moments))
    agent.learn()
    assert len(asked) == 1 < agent.choices.minibatch


def test_losses_of_the_critic_become_numbers_in_the_report():
    agent, learning = three_steps()
    assert all(torch.is_tensor(loss) and not loss.requires_grad for loss in [*learning.losses, agent.learn()])
    assert len(learning.losses) == 3
    assert learning.report()["critic"] == sum(map(float, learning.losses)) / 3


def test_no_reward_from_f1_where_there_are_more_than_two_classes():
    assert any(spec.args.get("reward") == "f1" for spec in runs.plan("paper", "qnli"))
    found = runs.plan("paper", "mnli")
    assert any(spec.args.get("reward") == "accuracy" for spec in found)
    assert not any(spec.args.get("reward") == "f1" for spec in found)


@pytest.mark.parametrize("phase", [1, 32, 128])
def test_the_rewards_of_steps_have_unit_deviation_however_long_a_phase_is(phase, monkeypatch):
    """What the critic learns from: were r^p / k divided by the deviation of r^p, it would be 1 / k."""
    measured = torch.randn(9, generator=torch.Generator().manual_seed(0)).cumsum(0).tolist()
    qualities = iter(measured)
    agent = Agent(WIDTH, BATCH, Choices(phase=phase, minibatch=512, exploration=False), seed=0)
    learning = ksm.Learning(agent, lambda model: next(qualities), total=8 * phase)
    seen = []
    monkeypatch.setattr(agents, "td_target", lambda reward, *_: seen.append(reward) or reward)
    learn, agent.learn = agent.learn, lambda: 0.0
    learning.begin(None)
    for step, (student, teacher) in enumerate(some_states(count=8 * phase)):
        learning(step, student, teacher)
        learning.after_step(step + 1, None)
    learn()
    assert float(seen[0].std()) == pytest.approx(1.0, rel=0.1) and abs(float(seen[0].mean())) < 0.15


def test_without_phases_every_step_is_rewarded():
    qualities = iter([0.0, 1.0, 3.0, 2.0])
    agent = Agent(WIDTH, BATCH, Choices(phase=2, multi_phase=False, exploration=False, minibatch=2), seed=0)
    learning = ksm.Learning(agent, lambda model: next(qualities), total=3)
    learning.begin(None)
    for step, (student, teacher) in enumerate(some_states(count=3)):
        learning(step, student, teacher)
        learning.after_step(step + 1, None)
    assert [s.shared for s in agent.memory.steps] == [1.0, 2.0, -1.0]
    assert {s.explored for s in agent.memory.steps} == {0.0}


def test_temporal_difference_targets_of_a_three_step_episode():
    targets = td_target(torch.tensor([0.15, 0.15, 0.1]), torch.tensor([1.0, 2.0, 3.0]),
                        torch.tensor([False, False, True]), gamma=0.5)
    torch.testing.assert_close(targets, torch.tensor([0.65, 1.15, 0.1]))


def test_the_papers_critic_losses_by_hand():
    values = torch.tensor([3.0, 2.0, 1.0], requires_grad=True)
    last = torch.tensor(0.5, requires_grad=True)
    phase, explored = literal_losses(values, last, torch.tensor([0.1, 0.2, 0.3]), reward=1.0, gamma=0.5)
    # Eq. 11: (3 - 2) / 1, (2 - 1) / 0.5, (1 - 0.5) / 0.25 sum to 5. Eq. 8: 0.1 + 2, 0.1 + 1, 0.075 + 0.5.
    assert phase.item() == pytest.approx((1 - 5) ** 2)
    assert explored.item() == pytest.approx((0.9**2 + 0.9**2 + 0.425**2) / 3)
    assert torch.autograd.grad(phase + explored, last, allow_unused=True) == (None,)


def test_undiscounted_phase_rewards_telescope():
    """Why the paper's eq. 10 gives no credit inside a phase: at gamma = 1 only its two ends have a gradient."""
    values = torch.tensor([3.0, 2.0, 1.0], requires_grad=True)
    phase, _ = literal_losses(values, torch.tensor(0.5), torch.zeros(3), reward=1.0, gamma=1.0)
    assert torch.autograd.grad(phase, values)[0].tolist() == [3.0, 0.0, 0.0]


def test_exploration_rewards_by_hand():
    before = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    action = torch.tensor([1.0, 0, 0, 0])
    assert novelty(action, before, 0.1, hard=True) == pytest.approx(0.1 * (1 - 2 / 4))
    assert novelty(action, before, 0.2, hard=False) == pytest.approx(0.2 * (1 - (1 + 0 + 0.5**0.5 + 1) / 4))
    assert novelty(action, before[:0], 0.1, hard=False) == 0.0


def test_hard_actions_reach_their_threshold():
    assert hard_action(torch.tensor([0.0, 0.19, 0.2, 0.9]), 0.2).tolist() == [0, 0, 1, 1]


def test_hard_learning_shows_the_student_g_of_a_and_the_critic_a():
    agent, learning = three_steps(hard=True, threshold=0.5)
    assert all(set(a.tolist()) <= {0.0, 1.0} for a in learning.actions)
    for step, taken in zip(agent.memory.steps, learning.actions, strict=True):
        assert torch.equal(hard_action(step.action, 0.5), taken) and not torch.equal(step.action, taken)


def test_a_trained_hard_selector_shows_the_student_g_of_a():
    states = some_states()[0]
    selector = Agent(WIDTH, BATCH, Choices(), seed=0).selector
    own = selector(*(state[None] for state in states))[0].tolist()
    taken = ksm.Trained(selector, Choices(hard=True, threshold=sum(own) / 4))(0, *states)
    assert taken.tolist() == [float(a >= sum(own) / 4) for a in own] and 0 < sum(taken) < 4


@pytest.mark.parametrize("change, message", [({"threshold": 2}, "threshold: got 2"), ({"phase": 0}, "phase: got 0"),
                                             ({"warmup": -1}, "warmup: got -1; allowed: a whole number from 0"),
                                             ({"episodes": 2.5}, "episodes: got 2.5; allowed: a whole number from 1"),
                                             ({"minibatch": 0}, "minibatch: got 0"),
                                             ({"reward": "f2"}, "reward: got 'f2'; allowed: loss, accuracy, f1")])
def test_choices_name_what_is_allowed(change, message):
    with pytest.raises(ValueError, match=message):
        Choices(**change)


# -------------------------------------------------------------------------------------------------- memory and networks


def test_memory_gives_rewarded_steps_and_their_successors():
    memory, generator = Memory(4), torch.Generator().manual_seed(0)
    steps = [Step(None, None, None, 0.0, shared=float(i)) for i in range(5)]
    steps[2].done, steps[4].shared = True, None
    for step in steps:
        memory.push(step)
    assert memory.steps == steps[1:]  # the oldest is gone
    drawn = {(a.shared, b.shared) for a, b in zip(*memory.sample(100, generator), strict=True)}
    assert drawn == {(1.0, 2.0), (2.0, 2.0), (3.0, None)}  # an episode's last step is followed by itself
    steps[4].shared = 4.0
    assert max(a.shared for a in memory.sample(100, generator)[0]) == 3.0  # the newest has no successor yet
    with pytest.raises(ValueError, match="memory: got no rewarded step"):
        Memory(4).sample(1, generator)


def test_networks_have_the_papers_sizes():
    agent = Agent(768, 32, Choices(), seed=0)
    assert [m.out_features for m in agent.selector.actor if hasattr(m, "out_features")] == [256, 256, 4]
    assert agent.selector.state_size == 32 * 2 * 8
    assert [m.in_features for m in agent.critic if hasattr(m, "in_features")] == [516, 256, 256]
    assert [m.out_features for m in agent.selector.student_features if hasattr(m, "out_features")] == [64, 8]


def test_a_selector_is_the_same_after_it_was_saved(tmp_path):
    selector = Agent(WIDTH, BATCH, Choices(), seed=3).selector
    agents.save(selector, tmp_path / "selector.safetensors")
    (states,) = some_states()
    again = agents.restore(tmp_path / "selector.safetensors")
    assert torch.equal(selector(*states[:, None]), again(*states[:, None]))
    with pytest.raises(ValueError, match=r"states: got \(1, 3, 6\) .*; allowed: twice \(n, 4, 6\)"):
        again(states[None, 0, :3], states[None, 1, :3])


def snapshot(agent):
    return {name: copy.deepcopy(module.state_dict()) for name, module in
            (("actor", agent.selector.actor), ("student", agent.selector.student_features),
             ("teacher", agent.selector.teacher_features), ("critic", agent.critic))}


def changed(agent, before):
    now = snapshot(agent)
    return {name for name in now if any(not torch.equal(now[name][k], before[name][k]) for k in now[name])}


def test_the_actor_moves_the_students_features_and_the_critic_the_teachers(monkeypatch):
    agent, _ = three_steps()
    before = snapshot(agent)
    student, teacher = (torch.stack(part) for part in zip(*some_states(count=3), strict=True))
    agent._improve(student, teacher)
    assert changed(agent, before) == {"actor", "student"}
    monkeypatch.setattr(agent, "_improve", lambda *_: None)
    before = snapshot(agent)
    agent.learn()
    assert changed(agent, before) == {"critic", "teacher"}
    before = snapshot(agent)
    agent.learn_literal(agent.memory.steps[:2], agent.memory.steps[2])
    assert changed(agent, before) == {"critic", "teacher"}


def test_the_actor_climbs_the_critic():
    agent, _ = three_steps()
    student, teacher = (torch.stack(part) for part in zip(*some_states(count=8), strict=True))

    def value():
        state = torch.cat(agent.selector.features(student, teacher), 1)
        return float(agent.values(agent.critic, (state,), agent.selector(student, teacher)).mean().detach())

    before = value()
    for _ in range(20):
        agent._improve(student, teacher)
    assert value() > before


def test_the_actor_does_not_move_the_state_that_the_critic_judges():
    """A critic that looks at the state alone tells it nothing: its s is a given."""
    agent = Agent(WIDTH, BATCH, Choices(calm=0.0), seed=0)
    agent.critic[0].weight.data[:, -4:] = 0.0
    before = snapshot(agent)
    agent._improve(*(torch.stack(part) for part in zip(*some_states(count=3), strict=True)))
    assert changed(agent, before) == set()


def test_the_penalty_draws_logits_to_zero_from_either_side():
    agent = Agent(WIDTH, BATCH, Choices(), seed=0)
    torch.nn.init.zeros_(agent.critic[-1].weight)  # no action is better than another
    bias = agent.selector.actor[-1].bias
    bias.data = torch.tensor([3.0, -3.0, 3.0, -3.0])
    agent._improve(*(torch.stack(part) for part in zip(*some_states(count=3), strict=True)))
    assert (bias.detach() - torch.tensor([3.0, -3.0, 3.0, -3.0])).sign().tolist() == [-1, 1, -1, 1]


def test_the_papers_update_takes_the_rewards_of_whole_phases(monkeypatch):
    seen = []
    monkeypatch.setattr(agents, "literal_losses", lambda *given: seen.append(given[3]) or literal_losses(*given))
    three_steps(literal=True)
    assert seen == pytest.approx([0.3, 0.1])


def test_targets_are_what_the_slow_networks_say(monkeypatch):
    agent, _ = three_steps()
    slow, asked = agent.target[1][-1], []
    torch.nn.init.zeros_(slow.weight)
    torch.nn.init.constant_(slow.bias, 7.0)
    monkeypatch.setattr(agents, "td_target", lambda *given: asked.append(given[1]) or td_target(*given))
    agent.learn()
    assert asked[0].tolist() == [7.0, 7.0]


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_stage_one_begins_at_random_and_goes_on_with_noise(noise):
    agent, states = Agent(WIDTH, BATCH, Choices(warmup=2, noise=noise), seed=0), some_states()[0]
    own = agent.selector(*(state[None] for state in states))[0].detach()
    apart = torch.stack([agent.act(*states) - own for _ in range(402)])
    assert apart[:2].abs().amax(1).min() > 0.1  # uniform, far from what the actor says
    assert float(apart[2:].std()) == pytest.approx(noise, abs=0.01) and float(apart[2:].mean().abs()) < 0.01


def test_learning_lets_the_targets_follow():
    agent, _ = three_steps()
    before = copy.deepcopy(agent.target)
    agent.learn()
    for old, target, source in zip(before, agent.target, (agent.selector, agent.critic), strict=True):
        for was, now, ahead in zip(old.parameters(), target.parameters(), source.parameters(), strict=True):
            torch.testing.assert_close(now, torch.lerp(was, ahead, agent.choices.polyak))
        assert checkpoints.hash_of(old) != checkpoints.hash_of(target)


def test_targets_follow_slowly():
    agent, _ = three_steps()
    target, source = agent.target[1][0].weight, agent.critic[0].weight
    agent.critic[0].weight.data += 1.0
    before = (source - target).clone()
    agent._follow()
    torch.testing.assert_close(source - target, before * 0.995)


# ------------------------------------------------------------------------------------------------------------- episodes


def toy(choices, seed=0, steps=64):
    """A student of one number that should become 1: three types bring it nearer, the fourth is poison and drives it
    away, at a rate at which it takes all steps to get there. Returns the agent, its episodes and the student's end
    under a policy."""
    agent = Agent(WIDTH, BATCH, choices, seed)

    def play(policy, after_step=None, begin=None):
        student, generator = torch.zeros(()), torch.Generator().manual_seed(seed)
        if begin:
            begin(student)
        for step in range(steps):
            states = torch.randn(2, BATCH, WIDTH, generator=generator) + student
            action = policy(step, *states)
            student += 1.28 / steps * (1 - student) * float(action[0] + action[1] + action[2] - 3 * action[3])
            if after_step:
                after_step(step + 1, student)
        return float(student)

    episodes = ksm.train(agent, lambda learning: play(learning, learning.after_step, learning.begin),
                         lambda student: -abs(1 - float(student)), steps)
    return agent, episodes, play


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_trained_actor_turns_poison_off_and_a_random_one_does_not(seed):
    """With the defaults, and as many steps and episodes as a distillation on MRPC has at `mini`. Thirty phase rewards
    in all do not always tell that a third good type is worth having beside two, so nothing is said of single ones."""
    choices = Choices(episodes=3)
    agent, _, play = toy(choices, seed, steps=309)
    chosen, random = [], []
    trained, draws = ksm.Trained(agent.selector, choices), knowledge.Draws(seed, soft=True)
    end = play(lambda *state: chosen.append(trained(*state)) or chosen[-1])
    luck = play(lambda *state: random.append(draws(*state)) or random[-1])
    mean = torch.stack(chosen).mean(0)
    assert mean[3] < 0.25 and mean[:3].max() > 0.5 and 0.45 < torch.tensor(random).mean(0)[3] < 0.55
    assert end > luck + 0.3


def test_rewards_at_every_step_keep_all_good_types():
    """What phases cost: on the same toy, single types are worth telling apart where each action has its own reward."""
    choices = Choices(episodes=3, multi_phase=False)
    agent, _, play = toy(choices, steps=128)
    chosen, trained = [], ksm.Trained(agent.selector, choices)
    play(lambda *state: chosen.append(trained(*state)) or chosen[-1])
    mean = torch.stack(chosen).mean(0)
    assert mean[3] < 0.1 < 0.5 < mean[:3].min()


def test_identical_seeds_give_identical_episodes():
    short = Choices(phase=8, episodes=2)
    untimed = [[{k: v for k, v in e.items() if k != "seconds"} for e in toy(short, seed)[1]] for seed in (1, 1, 2)]
    assert untimed[0] == untimed[1] != untimed[2]


def test_an_agent_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    agent = Agent(WIDTH, BATCH, Choices(), seed=1)
    agent.act(*some_states()[0])
    assert torch.equal(before, torch.get_rng_state())


def test_stage_one_ends_when_students_get_no_better():
    """And leaves the selector of the last episode, as the paper's Algorithm 2 does, not that of the best."""
    agent = Agent(WIDTH, BATCH, Choices(episodes=9, patience=2, phase=1, minibatch=1), seed=0)
    ends = iter([0.1, 0.5, 0.4, 0.5, 0.9])

    def episode(learning):
        learning.begin(0.0)
        learning(0, *some_states()[0])
        learning.after_step(1, next(ends))
        left.append(checkpoints.hash_of(agent.selector))

    left = []
    assert [r["quality"] for r in ksm.train(agent, episode, float, total=1)] == [0.1, 0.5, 0.4, 0.5]
    assert checkpoints.hash_of(agent.selector) == left[-1] and len(set(left)) == 4


@pytest.mark.parametrize("literal", [False, True])
def test_both_stages_run_on_a_bert_and_stage_two_computes_no_reward(literal, tmp_path):
    settings = replace(profiles.settings("smoke", "synthetic"), rows=128, epochs=2)
    task, teacher = data.load("synthetic", settings), bert.load("tiny", 2, seed=0)
    signals = ask(teacher, task.train, states=True)
    choices = Choices(phase=3, episodes=2, warmup=2, literal=literal, minibatch=4)
    asked = []

    def distilled(policy, **options):
        student = bert.keep_layers(teacher, settings.layers)
        selective = knowledge.Selective(signals, (2, 4), policy, tau=2.0)
        distil.train(student, task.train, selective, settings, seed=0, drop_last=True, **options)
        return selective.actions, checkpoints.hash_of(student)

    def episode(learning):
        learning.begin(None)
        distilled(learning, after_step=learning.after_step)

    def measure(model):
        asked.append(model)
        return -1.0 / len(asked)

    agent = Agent(32, 32, choices, seed=0)
    episodes = ksm.train(agent, episode, measure, total=8)
    assert [len(e["rewards"]) for e in episodes] == [3, 3]  # phases of three, three and two steps
    assert len(asked) == 2 * 4 and len(agent.memory.steps) == 16
    agents.save(agent.selector, tmp_path / "selector.safetensors")
    (actions, weights), again = (
        distilled(ksm.Trained(agents.restore(tmp_path / "selector.safetensors"), choices)) for _ in range(2))
    assert len(asked) == 2 * 4 and again == (actions, weights)
    assert len(actions) == 8 and len(set(actions)) == 8  # the action follows the state


# ------------------------------------------------------------------------------------------------------------- the runs


@pytest.fixture(scope="module")
def made():
    """A workbench on made-up rows, whose tiny teacher is untrained."""
    settings = replace(profiles.settings("smoke", "synthetic"), rows=128, epochs=2)
    rows, teacher = data.load("synthetic", settings), bert.load("tiny", 2, seed=0)
    signals = {"train": ask(teacher, rows.train, states=True)}
    return common.Bench(settings, rows, teacher, signals, "cpu", checkpoints.hash_of(teacher))


def synthetic(method, **args):
    return runs.make("smoke", "synthetic", method, 0, **args)


def test_rewards_come_from_held_out_rows(made, monkeypatch):
    monkeypatch.setattr(runs, "REWARD_ROWS", len(made.data.held) // 2)
    held, dev = made.data.held, made.data.dev
    student = bert.load("tiny", 2, seed=1)

    def answered(rows):
        return tasks.score(made.task, ask(student, rows, precision="fp32").logits.numpy(), rows.labels.numpy())

    precise = replace(made, settings=replace(made.settings, precision="fp32"))
    for reward, key, sign in (("loss", "nll", -1), ("accuracy", "accuracy", 1)):
        found = runs._measure(precise, reward)(student)
        assert found == pytest.approx(sign * answered(held.take(slice(0, runs.REWARD_ROWS)))[key])
    assert runs._measure(precise, "loss")(student) != pytest.approx(-answered(dev)["nll"])


def test_every_episode_starts_from_the_same_student(made, monkeypatch):
    starts, train = [], distil.train

    def watched(student, *args, **options):
        starts.append(checkpoints.hash_of(student))
        result = train(student, *args, **options)
        starts.append(checkpoints.hash_of(student))
        return result

    monkeypatch.setattr(distil, "train", watched)
    choices = Choices(episodes=2, phase=4, minibatch=4, warmup=2)
    _, episodes = runs._train_selector(synthetic("KSM-soft"), made, choices)
    assert len(episodes) == 2 and starts[0] == starts[2] != starts[1]


def test_a_constant_run_takes_the_mean_action_of_its_seeds_selector(monkeypatch):
    asked = []

    def recorded(spec, *_, **__):
        return asked.append(spec) or {"extra": {"mean_action": [0.1, 0.2, 0.3, 0.4]}}

    monkeypatch.setattr(runs, "run_once", recorded)
    assert runs._mean_action(runs.make("mini", "mrpc", "constant", 3)) == [0.1, 0.2, 0.3, 0.4]
    assert asked == [runs.make("mini", "mrpc", "KSM-soft", 3)]


def test_a_shrunk_constant_keeps_the_proportions_of_the_action_that_a_large_reward_ends_with(monkeypatch):
    asked = []

    def recorded(spec, *_, **__):
        return asked.append(spec) or {"extra": {"mean_action": [0.002, 0.001, 0.004, 0.003]}}

    monkeypatch.setattr(runs, "run_once", recorded)
    small, largest, free = (runs.make("mini", "sst2", "shrunk", 3, **change) for change in runs.SHRUNK)
    assert runs._shrunk(small) == [0.002, 0.001, 0.004, 0.003]
    assert runs._shrunk(largest) == runs._shrunk(free) == pytest.approx([0.5, 0.25, 1.0, 0.75])
    assert set(asked) == {runs.make("mini", "sst2", "KSM-soft", 3, proportion=True)}


@pytest.mark.parametrize("change, clip", [({}, 1.0), ({"clip": False}, float("inf"))])
def test_a_run_that_is_not_clipped_trains_without_a_bound(made, monkeypatch, change, clip):
    monkeypatch.setattr(common, "bench", lambda *_, **__: made)
    monkeypatch.setattr(runs, "_mean_action", lambda *_, **__: [0.5] * 4)
    assert next(runs.stages(synthetic("shrunk", **change))).made.settings.clip == clip


def test_dynamic_kd_asks_about_the_rows_that_the_student_is_least_sure_of(made):
    student = torch.tensor([[3.0, 0.0], [0.1, 0.0], [0.0, 2.0], [0.0, 0.3]])
    batch = {"index": torch.tensor([4, 5, 6, 7]), "labels": torch.tensor([0, 1, 1, 0])}
    terms = runs.dynamic_kd(made)(batch, student, None)
    told = made.signals["train"].logits[[5, 7]].log_softmax(-1)
    by_hand = (told.exp() * (told - student[[1, 3]].log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(terms["kd"], by_hand)
    torch.testing.assert_close(terms["loss"], by_hand + torch.nn.functional.cross_entropy(student, batch["labels"]))


def test_pkd_is_vanilla_kd_and_a_hundred_times_the_distance_of_states(made):
    batch = {"index": torch.arange(4), "labels": made.data.train.labels[:4]}
    logits, states = torch.randn(4, 2), torch.randn(4, len(made.settings.layers) + 1, 32)
    pkd, vanilla = (of(made)(batch, logits, states)["loss"] for of in (runs._pkd, runs._vanilla_kd))
    told = made.signals["train"].at(batch["index"]).states
    assigned = knowledge.assignment(len(made.settings.layers), made.settings.depth)[:-1]
    unit = torch.nn.functional.normalize
    apart = [(unit(states[:, i], dim=-1) - unit(told[:, j], dim=-1)).square().mean() for i, j in enumerate(assigned, 1)]
    torch.testing.assert_close(pkd - vanilla, 100 * torch.stack(apart).mean(), rtol=1e-4, atol=1e-4)


def test_a_selections_record_keeps_what_parts_of_training_average_out(made, monkeypatch):
    """A policy that turns two types on and off by turns has flat means, and a deviation of one half."""
    def swinging(step, student, teacher):
        return float(step % 2), 0.5, float(step % 2), 0.5

    def outcome(*_):
        yield from ()
        return {"extra": {}}

    selective = knowledge.Selective(made.signals["train"], (2, 4), swinging, tau=2.0)
    selective.actions = [swinging(step, None, None) for step in range(80)]
    monkeypatch.setattr(runs, "_distil", outcome)
    monkeypatch.setattr(runs.probes, "objective", lambda *_: selective)
    monkeypatch.setattr(selective, "report", dict)
    with pytest.raises(StopIteration) as end:
        next(runs._select(synthetic("Random-Soft"), made, swinging))
    extra = end.value.value["extra"]
    assert extra["action_sd"] == [0.5, 0.0, 0.5, 0.0] and extra["mean_action"] == [0.5] * 4
    assert extra["actions"] == [[0.5] * 4] * runs.BINS


def test_repeated_rows_are_as_many_as_augmented_ones_and_the_same(made, monkeypatch):
    monkeypatch.setattr(teacher_module, "signals", lambda *_, **__: made.signals["train"])
    repeated, augmented = (runs._more_rows(synthetic(f"vanilla-KD-{kind}", copies=2), made).data.train
                           for kind in ("repeated", "augmented"))
    train = made.data.train
    assert len(repeated) == len(augmented) == 3 * len(train)
    assert torch.equal(repeated.ids[1::3], train.ids) and torch.equal(repeated.labels, augmented.labels)
    assert not torch.equal(augmented.ids[1::3], train.ids)
    planned = {s.method for s in runs.plan("mini", "mrpc")}
    assert set(runs.AUGMENTED) <= planned and "vanilla-KD-repeated" in runs.AUGMENTED


@pytest.mark.parametrize(("method", "reads"), [("finetune-augmented", False), ("vanilla-KD-augmented", False),
                                               ("vanilla-KD-repeated", False), ("KSM-soft-augmented", True)])
def test_states_on_more_rows_are_asked_for_where_they_are_read(made, monkeypatch, method, reads):
    asked = []
    monkeypatch.setattr(teacher_module, "ask", lambda *a: asked.append(a[2]) or made.signals["train"])
    monkeypatch.setattr(common, "cache", lambda: None)
    runs._more_rows(synthetic(method, copies=1), made)
    assert asked == [reads]


def test_augmented_rows_are_made_once_a_seed(made, monkeypatch):
    monkeypatch.setattr(teacher_module, "signals", lambda *_, **__: made.signals["train"])
    first, second, other = (runs._more_rows(replace(synthetic(method, copies=1), seed=seed), made).data.train
                            for method, seed in (("finetune-augmented", 7), ("vanilla-KD-augmented", 7),
                                                 ("finetune-augmented", 8)))
    assert first is second and not torch.equal(first.ids, other.ids)


def test_vast_tasks_are_not_augmented_at_the_papers_size():
    """The states of ten to twenty copies of their rows would not fit, and the paper's Table 4 has neither."""
    for task in profiles.task_names("paper"):
        planned = {s.method for s in runs.plan("paper", task)} & set(runs.AUGMENTED)
        assert planned == (set() if task in ("qqp", "mnli", "stsb") else set(runs.AUGMENTED))


def test_augmented_rows_hold_no_word_that_only_evaluation_rows_hold(made):
    text = augment.pieces(made.data, made.settings)
    train = made.data.train.take(slice(0, 2))
    few = replace(made.data, train=train)
    rows = augment.of_task(few, made.settings, 5, seed=0)
    assert len(text) > len(train.ids.unique()) + 10  # there are others to take
    assert set(rows.ids.unique().tolist()) <= set(train.ids.unique().tolist()) | {0}
    assert not torch.equal(rows.ids[1::6, : train.ids.shape[1]], train.ids)
    likely = augment.Likely(None, torch.tensor([10, 20, 30]), 4, ["a", "b", "c"], among=[0, 2])
    assert likely._local(torch.tensor([30, 20, 10]), word=0) == [2]


def test_dropping_the_last_rows_must_leave_a_batch(made):
    few, size = made.data.train.take(slice(0, 31)), made.settings.batch_size
    student = bert.keep_layers(made.teacher, made.settings.layers)
    assert size == 32
    with pytest.raises(ValueError, match="^rows: got 31; allowed: 32 or more with drop_last$"):
        distil.train(student, few, distil.fine_tuning(), made.settings, seed=0, drop_last=True)
    with pytest.raises(ValueError, match="^rows: got 31; allowed: 32 or more with drop_last$"):
        replicas.train_many([student], few, distil.fine_tuning(), made.settings, seeds=[0], drop_last=True)


def test_the_headline_comparison_comes_first_and_gets_ten_seeds():
    specs = runs.plan("mini", "mrpc")
    assert len(set(specs)) == len(specs)
    assert [s.method for s in specs[:5]] == ["finetune", *runs.HEADLINE]
    assert {s.seed for s in specs[:25]} == set(range(5))
    for method in runs.HEADLINE:
        plain = [s for s in specs if s.method == method and set(s.args) <= {"episodes", "weights"}]
        assert [s.seed for s in plain] == list(range(10))
    assert runs.plan("mini", "stsb") == []


def test_variants_never_share_a_methods_name_with_the_runs_that_claims_compare():
    """A claim names a method and a few arguments; two runs of one seed would make it ambiguous."""
    named = ("multi_phase", "exploration", "proportion", "reward", "phase", "largest", "clip")
    seen = [(s.method, s.seed, *(s.args.get(n) for n in named)) for s in runs.plan("mini", "mrpc")]
    assert {s[0] for s in seen if seen.count(s) > 1} == {"KSM-threshold", "transfer", "tune-constant"}


def test_a_tuned_constant_is_the_best_of_eight_weightings_on_held_out_rows(monkeypatch):
    specs = runs.plan("mini", "mrpc")
    trials, first = runs.tuning("mini", "mrpc"), [s.method for s in specs].index("tune-constant")
    assert specs[first : first + 8] == trials and {s.method for s in specs[:first]} == {"finetune", *runs.HEADLINE}
    assert specs[first + 8 : first + 13] == [runs.make("mini", "mrpc", "tuned-constant", s) for s in range(5)]
    assert {s.seed for s in trials} == {900}
    weightings = [runs.weighting(s.args["draw"]) for s in trials]
    assert weightings[0] == [1.0] * 4 and len({tuple(w) for w in weightings}) == 8
    assert all(0 <= x <= 1 for w in weightings for x in w) and weightings == [runs.weighting(i) for i in range(8)]

    def trained(spec, *_, **__):  # the fifth is best on held-out rows by the verdict's metric, and nowhere else
        held = {"matthews": 0.5 + 0.1 * (spec.args["draw"] == 5), "f1": spec.args["draw"]}
        return {"spec": {"task": "mrpc", "args": spec.args},
                "metrics": {"held": held, "dev": {"matthews": -spec.args["draw"]}}}

    monkeypatch.setattr(runs, "run_once", trained)
    assert runs._tuned(specs[first + 8]) == weightings[5]


def test_choices_of_a_run_are_those_of_its_arguments():
    def of(method, **args):
        return runs.choices(runs.make("mini", "mrpc", method, 0, **args))

    assert of("KSM-soft") == Choices(episodes=3)
    assert of("KSM-hard", layers=4) == Choices(episodes=3, hard=True)
    assert of("KSM-soft", phase=64, exploration=False) == Choices(episodes=3, phase=64, exploration=False)
    assert of("KSM-threshold", threshold=0.3) == Choices(episodes=3, hard=True, threshold=0.3)
    assert of("KSM-literal") == Choices(episodes=3, literal=True)
    assert of("KSM-unpenalised") == Choices(episodes=3, calm=0.0)
    assert of("KSM-soft", proportion=True) == Choices(episodes=3, proportion=True)


@pytest.mark.parametrize("source, expected", [("seed", ("mrpc", 1)), ("task", ("sst2", 0)), ("depth", ("mrpc", 0))])
def test_a_transfer_names_the_run_whose_selector_it_tries(source, expected):
    layers = {"layers": 4} if source == "depth" else {}
    found = runs._source(runs.make("mini", "mrpc", "transfer", 0, source=source, **layers))
    assert (found.task, found.seed) == expected and found.method == "KSM-soft"
    assert found in runs.plan("mini", found.task)
    last = runs._source(runs.make("mini", "mrpc", "transfer", 4, source=source, **layers))
    assert last.seed == (0 if source == "seed" else 4)  # after the last seed comes the first
    with pytest.raises(ValueError, match=r"source: got 'sed'; allowed: seed, task, depth"):
        runs._source(runs.make("mini", "mrpc", "transfer", 0, source="sed"))
