"""Laws of settings: layers are merged name by name, the later one wins, and an error says where it stands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasette_vec_gemini.config import Settings, settings
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
    assert str(caught.value) == f"database 'd': there is no setting {name!r}; there are mode, page_size"


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
