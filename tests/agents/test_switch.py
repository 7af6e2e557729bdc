"""SwiftSage's switch: each rule of its table, and their order."""

import pytest

from lit_rft.agents.switch import RULES, Situation, SwitchSettings, switch

# a situation in which only the last rule applies
STUCK = Situation(steps=10, since_reward=5, since_sage=5, calls=0, failures=0, repeated=True)


@pytest.mark.parametrize(
    ("situation", "name", "sage"),
    [
        (STUCK, "stuck", True),
        (STUCK._replace(since_sage=None), "stuck", True),
        (STUCK._replace(repeated=False), "new action", False),
        (STUCK._replace(since_reward=4), "reward", False),
        (STUCK._replace(since_sage=4), "after a call", False),
        (STUCK._replace(steps=9), "start", False),
        (STUCK._replace(admissible=False), "invalid", True),
        (STUCK._replace(admissible=False, since_sage=3), "invalid", True),
        (STUCK._replace(admissible=False, since_sage=None, steps=0), "invalid", True),
        (STUCK._replace(admissible=False, since_sage=2), "invalid after a call", False),
        (STUCK._replace(critical=True, since_sage=None, steps=0), "first critical action", True),
        (STUCK._replace(critical=True, since_sage=4), "after a call", False),  # not the first one
        (STUCK._replace(failures=2, steps=2), "failures", True),
        (STUCK._replace(failures=1, steps=2), "start", False),
        (STUCK._replace(failures=2, since_sage=1), "failures", True),
        (STUCK._replace(calls=2), "too many calls", False),
        (STUCK._replace(calls=2, failures=2), "too many calls", False),  # barred even if it would be forced
        (STUCK._replace(calls=1), "stuck", True),
        (Situation(), "start", False),
    ],
)
def test_the_first_rule_that_applies_decides(situation: Situation, name: str, sage: bool) -> None:
    rule = switch(situation, SwitchSettings())
    assert (rule.name, rule.sage) == (name, sage)


def test_every_rule_has_a_name_of_its_own() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES) == 10


@pytest.mark.parametrize(
    ("settings", "situation", "name"),
    [
        (SwitchSettings(min_steps=11), STUCK, "start"),
        (SwitchSettings(patience=6), STUCK, "reward"),
        (SwitchSettings(cooldown=6), STUCK, "after a call"),
        (SwitchSettings(cooldown=0), STUCK._replace(since_sage=0), "stuck"),
        (SwitchSettings(invalid_cooldown=3), STUCK._replace(admissible=False, since_sage=3), "invalid after a call"),
        (SwitchSettings(max_failures=1), STUCK._replace(failures=1, steps=2), "failures"),
        (SwitchSettings(max_calls=1), STUCK._replace(calls=1), "too many calls"),
        (SwitchSettings(min_steps=0, patience=1), Situation(), "reward"),  # as an episode begins
    ],
)
def test_every_number_counts(settings: SwitchSettings, situation: Situation, name: str) -> None:
    assert switch(situation, settings).name == name != switch(situation, SwitchSettings()).name


@pytest.mark.parametrize(("name", "value"), [("min_steps", -1), ("patience", 0), ("max_calls", 0)])
def test_numbers_out_of_range(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"switch\.{name} must be >= {value + 1}, got {value}"):
        SwitchSettings(**{name: value})
