"""How a service is reached: whose key, over what address, within which limits; the key itself is never told."""

import dataclasses

import pytest
from fake_gemini import KEY

from datasette_vec_gemini import Access
from datasette_vec_gemini.access import SETTINGS
from datasette_vec_gemini.errors import InvalidSetting


def test_a_key_is_taken_from_the_setting_then_from_googles_variables_in_their_order():
    both = {"GOOGLE_API_KEY": "google", "GEMINI_API_KEY": "gemini"}
    cases = [
        ({"api_key": " mine\n"}, both, "mine", "the setting api_key"),
        ({"api_key": "  "}, both, "google", "GOOGLE_API_KEY"),
        ({"api_key": None}, both, "google", "GOOGLE_API_KEY"),
        ({}, {"GOOGLE_API_KEY": " ", "GEMINI_API_KEY": "gemini"}, "gemini", "GEMINI_API_KEY"),
        ({}, {}, None, ""),
        ({}, {"DATASETTE_VEC_API_KEY": "no"}, None, ""),
    ]
    for given, environment, key, source in cases:
        access = Access.from_settings(given, environment)
        assert (access.api_key, access.key_source) == (key, source)


def test_every_other_setting_may_stand_in_the_environment_and_a_setting_wins():
    environment = {
        "DATASETTE_VEC_DAILY_USD": "2.50",
        "DATASETTE_VEC_TEXTS_PER_MINUTE": "100",
        "DATASETTE_VEC_TEXTS_PER_DAY": "1e3",
        "DATASETTE_VEC_PROJECT": "123",
        "DATASETTE_VEC_BASE_URL": "https://proxy.example",
        "GOOGLE_GEMINI_BASE_URL": "https://google.example",
    }
    access = Access.from_settings({"texts_per_minute": 7}, environment)
    assert (access.daily_usd, access.texts_per_minute, access.texts_per_day) == (2.5, 7, 1_000)
    assert (access.project, access.base_url) == ("123", "https://proxy.example")
    assert (
        Access.from_settings({}, {"GOOGLE_GEMINI_BASE_URL": "https://google.example"}).base_url
        == "https://google.example"
    )
    assert set(SETTINGS) == {f.name for f in dataclasses.fields(Access)} - {"key_source"}


BAD = [
    *(
        {name: value}
        for name in ("texts_per_minute", "tokens_per_minute", "tokens_per_request")
        for value in (0, -1, 1.5, True, "9", None, float("nan"))
    ),
    *({"texts_per_request": value} for value in (0, 101, 2.0)),
    *({"query_seconds": value} for value in (0, 0.05, 61, float("inf"), float("nan"), "2")),
    *({"patience_seconds": value} for value in (-1, float("inf"), None)),
    *({"texts_per_day": value} for value in (-1, 1.5)),
    *({"daily_usd": value} for value in (-0.01, float("nan"), float("inf"), "1", True)),
    {"task_scheme": "other"},
    {"project": 7},
    {"location": "us-central1"},
    {"base_url": 7},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_an_impossible_setting_is_refused_by_its_name_and_without_the_key(bad):
    with pytest.raises(InvalidSetting) as caught:
        Access(api_key=KEY, key_source="GEMINI_API_KEY", **bad)
    assert next(iter(bad)) in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://generativelanguage.googleapis.com/",
        "https://proxy.example:8443/gemini",
        "http://127.0.0.1:8080",
        "http://127.8.9.1",
        "http://localhost:1",
        "http://[::1]:9/path",
    ],
)
def test_addresses_that_are_safe(url):
    assert Access(base_url=url).base_url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "generativelanguage.googleapis.com",
        "http://generativelanguage.googleapis.com",
        "http://10.0.0.1",
        "http://169.254.169.254",
        "http://0.0.0.0",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://127.0.0.1@evil.example",
        "http://2130706433.evil.example",
        "https://user:secret@host",
        "https://user@host",
        "https://host/?key=1",
        "https://host/#x",
        "https://",
        "https://host:99999",
        "https://[::1",
        "ftp://127.0.0.1",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "HTTP://evil.example",
    ],
)
def test_addresses_that_are_not(url):
    with pytest.raises(InvalidSetting, match="base_url"):
        Access(api_key=KEY, base_url=url)


@pytest.mark.parametrize("key", ["ключ", "with\nline", "nul\0", "tab\t"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_told(key):
    with pytest.raises(InvalidSetting) as caught:
        Access(api_key=key, key_source="GEMINI_API_KEY")
    assert key not in str(caught.value)
    assert "GEMINI_API_KEY" in str(caught.value)


def test_a_key_that_is_no_text_is_refused():
    with pytest.raises(InvalidSetting, match="api_key must be text"):
        Access.from_settings({"api_key": {"$env": "X"}}, {})


def test_it_never_shows_its_key():
    access = Access(api_key=KEY, key_source="GEMINI_API_KEY", base_url="https://host")
    assert KEY not in f"{access} {access!r} {access.account}"


@pytest.mark.parametrize(
    ("text", "name"),
    [("many", "texts_per_minute"), ("nan", "daily_usd"), ("-1", "daily_usd"), ("2.5", "texts_per_minute")],
)
def test_a_variable_that_is_no_number_is_refused_by_its_name(text, name):
    with pytest.raises(InvalidSetting, match=name):
        Access.from_settings({}, {f"DATASETTE_VEC_{name.upper()}": text})
