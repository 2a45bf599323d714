"""Options of the tasks: values from the command line and the configuration, and their checks."""

from __future__ import annotations

import pytest

from kbuild.core.errors import UserError
from kbuild.options import Option, Value

NUMBER = Option("rounds", "number of rounds", kind=int, default=9, least=1, key="rounds")
FLAG = Option("offline", "only the cache", kind=bool, key="offline")
CHOICE = Option("tier", "tier", default="unit", choices=("unit", "vm"), key="tier")
LIST = Option("load", "load", kind=list, choices=("few", "many"), key="load")


@pytest.mark.parametrize(
    ("option", "given", "configured", "value"),
    [
        (NUMBER, None, None, 9),
        (NUMBER, None, "3", 3),
        (NUMBER, "7", "3", 7),
        (FLAG, False, None, False),
        (FLAG, False, "yes", True),
        (FLAG, False, "", False),
        (FLAG, True, "no", True),
        (CHOICE, None, "", "unit"),
        (CHOICE, "vm", "unit", "vm"),
        (LIST, ["few"], "many few", ("few", "many", "few")),
        (LIST, [], None, ()),
    ],
)
def test_a_given_value_comes_before_the_configured_one(
    option: Option, given: object, configured: object, value: Value
) -> None:
    found = option.value(given, configured)
    assert found == value
    option.check(found)


@pytest.mark.parametrize(
    ("option", "given", "configured", "words"),
    [
        (NUMBER, "many", None, "--rounds must be a whole number, 1 or more"),
        (NUMBER, "0", None, "--rounds must be a whole number, 1 or more"),
        (NUMBER, None, "", "rounds must be a whole number, 1 or more"),
        (FLAG, False, "perhaps", "offline must be true or false"),
        (CHOICE, "lab", None, "--tier must be one of unit, vm"),
        (LIST, ["few", "none"], None, "--load must be one of few, many"),
    ],
)
def test_a_bad_value_is_the_users_error(
    option: Option, given: object, configured: object, words: str
) -> None:
    with pytest.raises(UserError) as caught:
        option.check(option.value(given, configured))
    assert caught.value.what == words


def test_the_help_has_choices_and_default() -> None:
    assert CHOICE.describe() == "tier: {unit,vm}; default: unit"
    assert LIST.describe() == "load: {few,many}; may be repeated"
    assert FLAG.describe() == "only the cache"
