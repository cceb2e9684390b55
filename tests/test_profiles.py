"""The profiles: bad names are one line, every task of a profile exists, and mini's choices are those of its runs."""

from dataclasses import asdict, replace

import pytest

from kdutils import claims, experiments, profiles, tasks
from kdutils.experiments import choices, common
from kdutils.records import look_up


def message(call):
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unknown_names_are_one_line():
    assert message(lambda: profiles.profile("mni")) == "profile: got 'mni'; allowed: smoke, demo, mini, paper"
    assert message(lambda: profiles.settings("mini", "mprc")).startswith("task: got 'mprc'; allowed: rte, mrpc")
    assert message(lambda: profiles.settings("demo", "mrpc")) == "task: got 'mrpc' for profile 'demo'; allowed: rotten"
    assert message(lambda: profiles.settings("mini", "mrpc", lrr=1)).startswith("settings: got ['lrr']; allowed: batch")


def test_settings_of_a_profile():
    for name, profile in profiles.PROFILES.items():
        assert profile.about and 2 <= profile.seeds <= profile.headline_seeds
        for task in profiles.task_names(name):
            found = profiles.settings(name, task)
            assert found == replace(profile.base, **profile.tasks[task])
            assert all(1 <= layer <= found.depth for layer in found.layers) and 0 < found.held < 0.5
            assert tasks.get(task).name == task
    assert profiles.settings("mini", "mrpc", lr=1.0).lr == 1.0
    assert set(profiles.task_names("mini")) == {"mrpc", "sst2", "stsb", "rotten", "rte"}
    assert profiles.settings("mini", "sst2").rows == 8000 and profiles.settings("demo", "rotten").rows == 1600


def test_further_seeds_go_to_tasks_that_claims_plan():
    mini, claimed = profiles.profile("mini"), {task for claim in claims.load()["claims"] for task in claim["tasks"]}
    for task in profiles.task_names("mini"):
        assert list(mini.more_seeds(task)) == (list(range(5, 10)) if task in claimed else [])
        for chapter in ("02_stark", "03_stark_auto", "04_peakd", "06_ksm"):
            specs = experiments.plan(chapter, "mini", task)
            seeds = {spec.seed for spec in specs if not spec.method.startswith("tune")}
            assert not seeds or (max(seeds) >= 5) == (task in claimed)


def test_plans_differ_between_profiles_and_stay_within_their_budget():
    for profile in profiles.PROFILES:
        for chapter in experiments.CHAPTERS:
            specs = experiments.plan(chapter, profile)
            assert len(set(specs)) == len(specs), (chapter, profile)
            assert {spec.profile for spec in specs} <= {profile}
            assert {spec.task for spec in specs} <= set(profiles.task_names(profile))
            assert message(lambda c=chapter, p=profile: experiments.plan(c, p, "nonsense")).startswith("task: got")


def test_a_teacher_does_not_depend_on_what_students_use():
    settings = profiles.settings("mini", "mrpc")
    before = common.teacher_spec("mini", "mrpc", settings).key
    student = {"lr": 7e-5, "epochs": 9, "layers": (1, 2), "keep": 0.5, "tau": 3.0}
    assert common.teacher_spec("mini", "mrpc", replace(settings, **student)).key == before
    changed = {"teacher_lr": 1e-3, "teacher_epochs": 9, "rows": 7, "model": "tiny", "batch_size": 3}
    for name, value in changed.items():
        assert common.teacher_spec("mini", "mrpc", replace(settings, **{name: value})).key != before, name


def test_a_setting_left_at_its_default_is_not_in_a_key():
    spec = common.make("01_pilot", "mini", "mrpc", "finetune", 0)
    less = {k: v for k, v in asdict(profiles.settings("mini", "mrpc")).items() if k != "tau"}
    assert replace(spec, settings=less).key == spec.key
    assert replace(spec, settings=spec.settings | {"tau": 3.0}).key != spec.key


@pytest.mark.parametrize("task", profiles.task_names("mini"))
def test_mini_uses_what_was_chosen(task):
    specs = choices.plan_choice("mini", task)
    records, missing = look_up(specs)
    if missing:
        pytest.skip(f"{len(missing)} of {len(specs)} runs of the choice are not published")
    best = choices.chosen(specs)
    settings = profiles.settings("mini", task)
    assert (tuple(best["layers"]), best["lr"]) == (settings.layers, settings.lr)
