"""Laws of settings: layers are merged name by name, the later one wins, and an error says where it stands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasette_vec_gemini.config import (
    OF_INSTANCE,
    Declaration,
    Settings,
    access,
    check_names,
    declarations,
    gate,
    settings,
    sync_interval,
)
from datasette_vec_gemini.domain import MODES
from datasette_vec_gemini.errors import InvalidSetting

LAYERS = st.fixed_dictionaries({}, optional={"mode": st.sampled_from(MODES), "page_size": st.integers(1, 1_000)})


@pytest.mark.parametrize("layers", [(), (("instance", None),), (("instance", {}), ("database 'd'", None))])
def test_without_a_configuration_the_defaults_hold(layers):
    assert settings(*layers) == Settings(mode="hybrid", page_size=10)


def test_an_inner_layer_replaces_single_settings_not_the_whole_block():
    layers = [
        ("instance", {"mode": "keyword", "page_size": 20}),
        ("database 'd'", {"page_size": 30}),
        ("table 't'", {"mode": "semantic"}),
    ]
    assert settings(*layers) == Settings(mode="semantic", page_size=30)
    assert settings(*reversed(layers)) == Settings(mode="keyword", page_size=20)


@given(st.lists(LAYERS, max_size=4))
def test_the_last_layer_that_names_a_setting_decides(layers):
    merged = {name: value for layer in layers for name, value in layer.items()}
    assert settings(*(("somewhere", layer) for layer in layers)) == Settings(**merged)


def test_merging_leaves_the_layers_alone():
    outer, inner = {"mode": "keyword"}, {"page_size": 5}
    settings(("instance", outer), ("database", inner))
    assert (outer, inner) == ({"mode": "keyword"}, {"page_size": 5})


@pytest.mark.parametrize("name", ["modus", "Mode", "page-size", ""])
def test_an_unknown_setting_is_named_with_its_place_and_those_there_are(name):
    with pytest.raises(InvalidSetting) as caught:
        settings(("instance", {"mode": "keyword"}), ("database 'd'", {name: 1}))
    assert str(caught.value) == f"database 'd': there is no setting {name!r}; there are columns_shown, mode, page_size"


@pytest.mark.parametrize("value", ["fuzzy", "", "Hybrid", None, 1, [], {}])
def test_an_impossible_mode_is_named_with_its_place_even_where_an_inner_layer_hides_it(value):
    with pytest.raises(InvalidSetting) as caught:
        settings(("instance", {"mode": value}), ("database 'd'", {"mode": "keyword"}))
    assert str(caught.value) == f"instance: mode is {value!r}; it can be hybrid, semantic, keyword"


@pytest.mark.parametrize("value", [0, -1, 1_001, "10", 10.0, None, [10]])
def test_an_impossible_page_size_is_named_with_its_place(value):
    with pytest.raises(InvalidSetting) as caught:
        settings(("database 'd'", {"page_size": value}))
    assert str(caught.value) == f"database 'd': page_size is {value!r}; it can be 1 to 1,000"


@pytest.mark.parametrize("value", [1, 1_000])
def test_the_borders_of_page_size_are_possible(value):
    assert settings(("instance", {"page_size": value})).page_size == value


def test_true_is_no_page_size():
    with pytest.raises(InvalidSetting):
        settings(("instance", {"page_size": True}))


@pytest.mark.parametrize("layer", [["mode"], "mode", 5, True])
def test_a_configuration_that_is_no_mapping_is_refused_with_its_place(layer):
    with pytest.raises(InvalidSetting, match=r"^instance: "):
        settings(("instance", layer))


@pytest.mark.parametrize("name", OF_INSTANCE)
def test_money_keys_and_limits_stand_at_the_instance_only(name):
    assert settings(("instance", {name: 1})) == Settings()
    with pytest.raises(InvalidSetting) as caught:
        settings(("instance", {}), ("database 'd'", {name: 1}))
    assert str(caught.value) == f"database 'd': {name} can only be set for the whole instance"


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        (None, "auto"), ("auto", "auto"), ("on", "on"), ("cached", "cached"), ("off", "off"),
        (True, "on"), (False, "off"),  # as YAML reads on and off
    ],
)  # fmt: skip
def test_sql_embedding_is_what_was_written(value, mode):
    assert gate({"sql_embedding": value}, environment={}).mode == mode


def test_the_gate_s_settings_can_stand_in_the_environment_and_the_configuration_goes_first():
    environment = {"DATASETTE_VEC_SQL_EMBEDDING": "cached"}
    assert gate({}, environment=environment).mode == "cached"
    assert gate({"sql_embedding": False}, environment=environment).mode == "off"


@pytest.mark.parametrize("value", ["perhaps", "true", "ON", 1, 0, [], {}])
@pytest.mark.parametrize("place", ["instance", "the environment"])
def test_an_impossible_sql_embedding_is_named_with_its_place(value, place):
    layer, environment = {"sql_embedding": value}, {}
    if place == "the environment":
        value = str(value)
        layer, environment = {}, {"DATASETTE_VEC_SQL_EMBEDDING": value}
    with pytest.raises(InvalidSetting) as caught:
        gate(layer, where="instance", environment=environment)
    assert str(caught.value) == f"{place}: sql_embedding is {value!r}; it can be auto, on, cached, off"


@pytest.mark.parametrize("value", [-1, "many", 1.5, True, [10]])
def test_an_impossible_number_of_texts_a_minute_is_named_with_its_place(value):
    with pytest.raises(InvalidSetting) as caught:
        gate({"sql_texts_per_minute": value}, where="instance", environment={})
    assert str(caught.value) == f"instance: sql_texts_per_minute is {value!r}; it must be a whole number from 0"


def test_a_refused_setting_is_named_with_its_place_be_it_a_file_or_the_environment(monkeypatch):
    with pytest.raises(InvalidSetting, match=r"^instance: daily_usd is 'many'"):
        access("instance", {"daily_usd": "many"})
    monkeypatch.setenv("DATASETTE_VEC_DAILY_USD", "lots")
    with pytest.raises(InvalidSetting, match=r"^the environment: daily_usd is 'lots'"):
        access("instance", {"page_size": 5})
    assert access("instance", {"daily_usd": 2}).daily_usd == 2


@pytest.mark.parametrize("value", [5, ["key"], {"a": 1}])
def test_a_key_that_is_no_text_is_refused_without_showing_it(value):
    with pytest.raises(InvalidSetting) as caught:
        access("instance", {"api_key": value})
    assert str(caught.value) == "instance: api_key must be text, such as {$env: GEMINI_API_KEY}"


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (None, []),
        ({"mode": "keyword"}, []),
        ({"index": []}, []),
        ({"index": {"columns": ["a"]}}, [Declaration(name="docs", table="docs", columns=("a",))]),
        (
            {"index": [{"columns": ["a"]}, {"template": "{a}", "name": "other", "embedder": "gemini", "key": ["id"]}]},
            [
                Declaration(name="docs", table="docs", columns=("a",)),
                Declaration(name="other", table="docs", template="{a}", embedder="gemini", key=("id",)),
            ],
        ),
    ],
)
def test_a_table_declares_one_index_or_several(layer, found):
    assert declarations("table docs", layer, "docs") == found


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("title", "table docs: index: expected what an index is made of, such as columns: [title], found 'title'"),
        (None, "table docs: index: expected what an index is made of, such as columns: [title], found None"),
        ([{"columns": ["a"]}, 5], "table docs: index 2: expected what an index is made of"),
        ({"columns": []}, "table docs: index: columns is []; it must be a list of columns"),
        ({"columns": [1]}, "table docs: index: columns is [1]; it must be a list of columns"),
        ({"columns": ["a"], "template": 5}, "table docs: index: template is 5; it must be text"),
        ({"columns": ["a"], "quantize": "byte"}, "table docs: index: quantize is 'byte'; it can be bit, int8, float32"),
        (
            {"columns": ["a"], "table": "x"},
            "table docs: index: there is no setting 'table'; there are columns, embedder",
        ),
        (
            {"columns": ["a"], "embedder": "nosuch@64"},
            "table docs: index: there is no embedder 'nosuch@64'; there are gemini, ",
        ),
        ({"template": "{a} {b"}, "table docs: index: template is '{a} {b'; each { must be closed, as in {title}"),
        ([{"columns": ["a"], "name": "X"}, {"columns": ["a"], "name": "x"}], "table docs: 2 indexes have the name 'x'"),
    ],
)
def test_a_wrong_declaration_is_named_with_its_place(index, words):
    with pytest.raises(InvalidSetting) as caught:
        declarations("table docs", {"index": index}, "docs")
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("index", [{"template": "x: {a}"}, {"columns": ["a"], "embedder": "hashing@64"}])
def test_a_right_declaration_is_taken(index):
    assert len(declarations("table docs", {"index": index}, "docs")) == 1


def test_two_tables_of_a_database_cannot_declare_an_index_of_one_name():
    one, other = (Declaration(name=name, table=table, columns=("a",)) for name, table in (("a", "t"), ("A", "u")))
    check_names([("table t", one)])
    with pytest.raises(InvalidSetting, match=r"^table u: table t declares an index 'A' too: "):
        check_names([("table t", one), ("table u", other)])


@pytest.mark.parametrize("level", [0, 1])
def test_an_index_is_declared_in_the_block_of_a_table_only(level):
    layers = [("instance", {}), ("database", {}), ("table", {"index": {"columns": ["a"]}})]
    assert settings(*layers) == Settings()
    layers = [(where, {"index": {"columns": ["a"]}} if n == level else {}) for n, (where, _) in enumerate(layers)]
    with pytest.raises(InvalidSetting, match=r"can only be declared in the block of a table$"):
        settings(*layers)


@pytest.mark.parametrize(("value", "seconds"), [(0, 0), (1, 1), (2.5, 2.5), (86_400, 86_400)])
def test_the_interval_of_syncs_is_what_was_written_and_5_seconds_otherwise(value, seconds):
    assert sync_interval("instance", {"sync_interval_seconds": value}) == seconds
    assert sync_interval("instance", None) == 5


@pytest.mark.parametrize("value", [-1, 0.5, 86_401, True, "5", None, [], float("nan"), float("inf")])
def test_an_impossible_interval_is_named_with_its_place(value):
    with pytest.raises(InvalidSetting, match=r"^instance: sync_interval_seconds is .*; it can be 1 to 86,400, or 0"):
        sync_interval("instance", {"sync_interval_seconds": value})
