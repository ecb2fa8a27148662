from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from kedro_aat.errors import AatError, ConfigurationError
from kedro_aat.validated import Settings, closest, parse
from tests.mistakes import key_of


class Straight(Settings):
    kind: Literal["straight"] = "straight"
    length: Annotated[float, Field(gt=0)] = 1.0


class Winding(Settings):
    kind: Literal["winding"] = "winding"
    num_turns: int = 2
    through: tuple[str, ...] = ()


Way = Annotated[Straight | Winding, Field(discriminator="kind")]


class Walk(Settings):
    days: int
    way: Way = Straight()
    detours: tuple[Way, ...] = ()
    weather: Literal["sun", "rain"] = "sun"
    colors_: Annotated[str | None, Field(alias="colors")] = None
    model: str = "none"
    steepest: Annotated[float, Field(ge=0, lt=1)] = 0.1
    shallowest: float = 0.0
    camp: Straight | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Walk:
        if self.shallowest > self.steepest:
            raise ValueError(f"shallowest must be at most steepest ({self.steepest}), but got {self.shallowest}")
        return self


def mistakes(data: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        Walk.model_validate(data)
    return caught.value.mistakes


def test_settings_are_read_from_plain_data() -> None:
    walk = Walk.model_validate({"days": 3, "way": {"kind": "winding"}, "colors": "red"})
    assert walk == Walk.model_validate({"days": 3, "way": Winding(), "colors": "red"})
    assert (walk.days, walk.way, walk.colors_) == (3, Winding(num_turns=2), "red")
    assert Walk.model_validate(walk) == walk


def test_settings_cannot_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Walk(days=3).days = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "mistake"),
    [
        ({}, "days: this key is required"),
        ({"days": "ten"}, "days: should be a valid integer, unable to parse string as an integer, but got 'ten'"),
        ({"days": 1, "steepest": 1.0}, "steepest: should be less than 1, but got 1.0"),
        ({"days": 1, "steepest": float("nan")}, "steepest: should be a finite number, but got nan"),
        ({"days": 1, "weather": "rains"}, "weather: must be one of sun, rain, but got 'rains'. Did you mean 'rain'?"),
        ({"days": 1, "weather": "fog"}, "weather: must be one of sun, rain, but got 'fog'."),
        (
            {"days": 1, "way": {"kind": "windng"}},
            "way.kind: must be one of straight, winding, but got 'windng'. Did you mean 'winding'?",
        ),
        ({"days": 1, "way": {"length": 0}}, "way.kind: this key is required"),
        ({"days": 1, "way": {"kind": "straight", "length": 0}}, "way.length: should be greater than 0, but got 0"),
        (
            {"days": 1, "detours": [{"kind": "straight"}, {"kind": "straight", "length": -1}]},
            "detours.1.length: should be greater than 0, but got -1",
        ),
        (
            {"days": 1, "detours": [{"kind": "winding", "through": ["wood", 3]}]},
            "detours.0.through.1: should be a valid string, but got 3",
        ),
        (
            {"days": 1, "steepest": 0.1, "shallowest": 0.2},
            "shallowest must be at most steepest (0.1), but got 0.2",
        ),
        (
            {"days": {"from": 1, "to": 2}},
            "days: should be a valid integer, but got a mapping with the keys from, to",
        ),
        ({"days": 1, "detours": "straight"}, "detours: should be a list, but got 'straight'"),
        ({"days": 1, "way": "straight"}, "way: should be a mapping of keys to values, but got 'straight'"),
        ({"days": 1, "camp": "tent"}, "camp: should be a mapping of keys to values, but got 'tent'"),
    ],
    ids=key_of,
)
def test_a_mistake_is_named_with_its_key_the_rule_and_the_value(data: Any, mistake: str) -> None:
    assert mistakes(data) == [mistake]


@pytest.mark.parametrize(
    ("data", "key", "value", "likely"),
    [
        ({"dys": 7, "days": 1}, "dys", "7", "days"),
        ({"days": 1, "way": {"kind": "winding", "num_turn": 7}}, "way.num_turn", "7", "num_turns"),
        ({"days": 1, "detours": [{"kind": "straight", "lenght": 7}]}, "detours.0.lenght", "7", "length"),
        ({"days": 1, "color": 7}, "color", "7", "colors"),
    ],
    ids=["root", "member of a union", "in a list", "alias"],
)
def test_an_unknown_key_is_named_with_its_value_and_the_likely_one(
    data: Any, key: str, value: str, likely: str
) -> None:
    (mistake,) = mistakes(data)
    assert mistake.startswith(f"{key}: unknown key")
    assert mistake.endswith(f" Did you mean '{likely}'?")
    assert value in mistake


def test_an_unknown_key_unlike_all_others_gets_no_suggestion() -> None:
    (mistake,) = mistakes({"days": 1, "zzz": 7})
    assert mistake.startswith("zzz: unknown key")
    assert "Did you mean" not in mistake


def test_keys_of_another_member_of_a_union_are_not_suggested() -> None:
    (mistake,) = mistakes({"days": 1, "way": {"kind": "straight", "num_turn": 7}})
    assert mistake.startswith("way.num_turn: unknown key")
    assert "num_turns" not in mistake


@pytest.mark.parametrize("data", [None, 3, "a walk", [1, 2]], ids=repr)
def test_data_that_is_not_a_mapping(data: Any) -> None:
    (mistake,) = mistakes(data)
    assert mistake.startswith("(the whole): should be a mapping of keys to values, but got ")
    assert mistake.endswith(f"but got {data!r}")


def test_one_error_lists_all_mistakes() -> None:
    data = {
        "dys": 1,
        "way": {"kind": "windng"},
        "detours": [{"kind": "straight", "length": -1}],
        "weather": "fog",
        "steepest": 1.5,
    }
    with pytest.raises(ConfigurationError) as caught:
        parse(Walk, data, where="parameters.yml")
    found = caught.value.mistakes
    keys = sorted(mistake.partition(":")[0] for mistake in found)
    assert keys == ["days", "detours.0.length", "dys", "steepest", "way.kind", "weather"]
    first, *lines = str(caught.value).splitlines()
    assert first == "parameters.yml: 6 mistakes"
    assert lines == [f"  - {mistake}" for mistake in found]


@pytest.mark.parametrize(
    ("other", "is_checked"),
    [
        ({"dys": 1}, True),
        ({"weather": None}, True),
        ({"way": {"kind": "windng"}}, True),
        ({"detours": [{"kind": "straight", "length": -1}]}, True),
        # Not if the intended value of a key that the rule names is unknown.
        ({"steepest": 1.5}, False),
        ({"shallowst": 0.5, "steepest": None}, False),
        # A wrong item stays in its list, since others would move, and so hides the rules of the whole.
        ({"way": {"kind": "winding", "through": [3]}}, False),
    ],
    ids=repr,
)
def test_a_rule_on_several_keys_is_checked_if_its_keys_are_valid(other: dict[str, Any], is_checked: bool) -> None:
    found = mistakes({"days": 1, "steepest": 0.1, "shallowest": 0.2} | other)
    assert len(found) == len(other) + is_checked
    assert any(mistake.startswith("shallowest must be at most steepest") for mistake in found) == is_checked


def test_rules_are_checked_when_those_of_their_parts_are_broken() -> None:
    class Inner(Settings):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def _ordered(self) -> Inner:
            if self.low > self.high:
                raise ValueError(f"low must be at most high ({self.high}), but got {self.low}")
            return self

    class Outer(Inner):
        inner: Inner = Inner()

    with pytest.raises(ConfigurationError) as caught:
        Outer.model_validate({"low": 2, "inner": {"low": 3, "lw": 0}})
    assert caught.value.mistakes == [
        "inner.lw: unknown key (its value is 0). Did you mean 'low'?",
        "inner: low must be at most high (1), but got 3",
        "low must be at most high (1), but got 2",
    ]


def test_every_wrong_item_of_a_long_list_is_listed() -> None:
    # Each costs the same, however many there are: 16,000 took 9 s when every message was compared with all others.
    wrong = list(range(4000))
    found = mistakes({"days": 1, "way": {"kind": "winding", "through": wrong}})
    assert found == [f"way.through.{item}: should be a valid string, but got {item}" for item in wrong]


def test_a_long_value_is_cut_short() -> None:
    (mistake,) = mistakes({"days": "many " * 100})
    assert "but got 'many many many" in mistake
    assert mistake.endswith("...")
    assert len(mistake) < 200


def test_the_error_is_ours_and_a_value_error() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Walk.model_validate({})
    assert isinstance(caught.value, AatError)
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).startswith("Walk: 1 mistake\n")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_closest_name() -> None:
    known = ["magnitude_sparsity", "filter_pruning"]
    assert closest("magnitude_sparsty", known) == " Did you mean 'magnitude_sparsity'?"
    assert closest("adaptive", ["early_exit", "adaptive_compression_level"]) == (
        " Did you mean 'adaptive_compression_level'?"
    )
    assert closest("zzz", known) == ""


def nested(levels: int) -> Any:
    value: Any = "low"
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize("levels", [101, 254, 255, 10_000])
def test_data_that_nest_too_deeply_are_one_mistake(levels: int) -> None:
    """At 255 levels pydantic cannot serialize, and at 1000 `repr` and `json` give up, each with an error of its own."""
    assert mistakes({"days": 1, "weather": nested(levels)}) == [
        "mappings and lists must be nested at most 100 levels deep"
    ]
    (mistake,) = mistakes({"days": 1, "weather": nested(99)})
    assert mistake.startswith("weather: must be one of sun, rain, but got ")


@pytest.mark.parametrize(
    ("data", "mistake"),
    [
        ({"steepest": 10**5000}, "steepest: should be a valid number, but got a number of 16610 bits"),
        ({"\0": 1}, r"'\x00': unknown key (its value is 1)."),
        ({"a" * 1000: 1}, f"{57 * 'a'}...: unknown key (its value is 1)."),
        (
            {"weather": "\ud800"},
            r"weather: should be a valid string, unable to parse raw data as a unicode string, but got '\ud800'",
        ),
        ({"weather": ["sun"] * 1000}, f"weather: must be one of sun, rain, but got {str(['sun'] * 1000)[:57]}...."),
        ({1: 2}, "(the whole): Keys should be strings, but got 1"),
    ],
)
def test_any_value_can_be_shown(data: Any, mistake: str) -> None:
    (found,) = mistakes({"days": 1} | data)
    assert found == mistake
    found.encode()


def test_thousands_of_mistakes_are_counted_but_not_all_listed() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Walk.model_validate({"days": 1, "way": {"kind": "winding", "through": list(range(2000))}})
    text = str(caught.value)
    assert text.startswith("Walk: 2000 mistakes\n  - way.through.0: should be a valid string, but got 0\n")
    assert text.endswith("\n  - ... and 1900 more")
    assert len(text) < 10_000


def test_a_message_can_be_printed_whatever_a_library_says() -> None:
    text = str(ConfigurationError("\ud800", ["\udfff", 10_000 * "a"]))
    assert text == "\\ud800: 2 mistakes\n  - \\udfff\n  - " + 1997 * "a" + "..."


def test_a_text_that_is_no_unicode_in_a_validators_own_message() -> None:
    class Road(Settings):
        lanes: tuple[Any, ...]

        @model_validator(mode="after")
        def _checked(self) -> Road:
            raise ValueError(f"no road has the lane {self.lanes[0]}")

    with pytest.raises(ConfigurationError) as caught:
        Road.model_validate({"lanes": ["\ud800"]})
    assert str(caught.value) == "Road: 1 mistake\n  - no road has the lane \\ud800"
