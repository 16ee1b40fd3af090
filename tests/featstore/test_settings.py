"""Settings: where values come from, and that whatever is wrong with one is said in one line."""

from __future__ import annotations

import codecs
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from featstore.settings import (
    ConfigError,
    Count,
    NotNegative,
    Positive,
    Several,
    make,
    read_texts,
    read_toml,
    settings,
    table,
)
from tests.conftest import ROOT


@settings
class Meal:
    """For these tests."""

    dish: str
    guests: Count = Field(2, description="who sit down")
    salt: Annotated[float, Field(ge=0, lt=1)] = 0.1
    heat: Positive = 90.0
    kind: Literal["", "hot", "cold"] = ""
    vegan: bool = False
    times: Several[Annotated[float, Field(ge=0, le=24)]] = (12.0, 18.5)
    prices: dict[str, NotNegative] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _together(self):
        if self.kind == "cold" and self.heat > 50:
            raise ValueError(f"heat must be 50 or less for a cold meal, found {self.heat:g}")
        return self


def test_what_comes_later_counts():
    made = make(Meal, ("a.toml", {"dish": "soup", "guests": 3}), ("", {"guests": 4, "times": [7]}))
    assert (made.dish, made.guests, made.times, made.salt) == ("soup", 4, (7.0,), 0.1)
    assert replace(made, guests=5).guests == 5 and asdict(made)["prices"] == {}


def test_texts():
    texts = ("dish = 1,5", "guests=3", "salt=1e-2", "vegan=True", "times=0, 24,", "prices=a:b:2,c=d:1,")
    assert read_texts(Meal, texts) == {
        **{"dish": "1,5", "guests": 3, "salt": 0.01, "vegan": True, "times": [0.0, 24.0]},
        "prices": {"a:b": 2.0, "c=d": 1.0},
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "missing key 'dish'"),
        ({"dish": 3}, "dish must be a text, found 3"),
        ({"guest": 3}, "no setting is called 'guest'; did you mean guests?"),
        ({"xyzxyz": 3}, "no setting is called 'xyzxyz'; known are dish, guests, salt"),
        ({"guests": 2.0}, "guests must be a whole number, found 2.0"),
        ({"guests": True}, "guests must be a whole number, found True"),
        ({"guests": 0}, "guests must be 1 or more, found 0"),
        ({"salt": 1}, "salt must be at least 0 and below 1, found 1"),
        ({"salt": "0.5"}, "salt must be a number, found '0.5'"),
        ({"heat": float("inf")}, "heat must be a number, found inf"),
        ({"heat": -1.5}, "heat must be more than 0, found -1.5"),
        ({"kind": "warm"}, "kind must be one of hot, cold, found 'warm'"),
        ({"vegan": 1}, "vegan must be true or false, found 1"),
        ({"times": 3}, "times must be numbers separated by commas, found 3"),
        ({"times": []}, "times must be numbers separated by commas, found []"),
        ({"times": [1, 25]}, "times must be 0 to 24, found [1, 25]"),
        ({"times": ["noon"]}, "times must be numbers separated by commas, found ['noon']"),
        ({"prices": {"tea": -1}}, "prices.tea must be 0 or more, found -1"),
        ({"prices": {"tea": "dear"}}, "prices.tea must be a number, found 'dear'"),
        ({"prices": 3}, "prices must be name:number pairs separated by commas, found 3"),
        ({"kind": "cold"}, "heat must be 50 or less for a cold meal, found 90"),
    ],
)
def test_whatever_is_wrong_is_one_line(values, message):
    with pytest.raises(ConfigError) as caught:
        make(Meal, ("", {"dish": "soup"} | values if values and "dish" not in values else values))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_an_error_names_the_file_that_the_value_is_from():
    file, command = ("a.toml", {"dish": "soup", "guests": 0}), ("", {"salt": 2.0})
    with pytest.raises(ConfigError, match="^a.toml: guests must be 1 or more"):
        make(Meal, file, ("", {"salt": 0.5}))
    with pytest.raises(ConfigError, match="^salt must be at least 0"):
        make(Meal, ("a.toml", {"dish": "soup"}), command)
    with pytest.raises(ConfigError, match="^a.toml: no setting is called 'dosh'"):
        make(Meal, ("a.toml", {"dosh": "soup"}), command)
    with pytest.raises(ConfigError, match="^a.toml: missing key 'dish'"):
        make(Meal, ("a.toml", {"salt": 0.5}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guests", "--set 'guests': expected key=value"),
        ("guets=3", "no setting is called 'guets'; did you mean guests?"),
        ("guests=2.5", "guests must be a whole number, found '2.5'"),
        ("salt=high", "salt must be a number, found 'high'"),
        ("vegan=maybe", "vegan must be true or false, found 'maybe'"),
        ("times=7,noon", "times must be numbers separated by commas, found '7,noon'"),
        ("prices=tea", "prices must be name:number pairs separated by commas, found 'tea'"),
    ],
)
def test_wrong_texts(text, message):
    with pytest.raises(ConfigError) as caught:
        make(Meal, ("", {"dish": "soup"}), ("", read_texts(Meal, [text])))
    assert str(caught.value).startswith(message)


def test_toml_files(tmp_path):
    file = tmp_path / "a.toml"
    file.write_bytes(codecs.BOM_UTF8 + 'dish = "Käse"\n'.encode())
    assert read_toml(file) == {"dish": "Käse"}
    for content in (b"dish = = 3", b"dish = '\xff'"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"a\.toml: not a TOML file: "):
            read_toml(file)
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: No such file"):
        read_toml(tmp_path / "absent.toml")


def test_the_table_has_a_line_a_setting():
    assert table(Meal).splitlines() == [
        "dish           a text",
        "guests=2       a whole number, 1 or more                         who sit down",
        "salt=0.1       a number, at least 0 and below 1",
        "heat=90        a number, more than 0",
        "kind=          one of hot, cold",
        "vegan=false    true or false",
        "times=12,18.5  numbers separated by commas, 0 to 24",
        "prices=        name:number pairs separated by commas, 0 or more",
    ]


def test_commands_start_without_pydantic():
    script = "import sys, cli.featstore, cli.trainers, cli.evaluation; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
