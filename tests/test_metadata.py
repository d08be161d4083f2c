"""The configuration that is shipped works as it stands."""

from pathlib import Path

import yaml

from datasette_vec_gemini.config import Declaration, Settings, declarations, settings, sync_interval

METADATA = yaml.safe_load(Path(__file__).parent.parent.joinpath("metadata.yml").read_text(encoding="utf-8"))


def test_every_level_of_metadata_yml_is_a_valid_setting():
    def layer(block):
        return block["plugins"]["datasette-vec-gemini"]

    database = METADATA["databases"]["mydb"]
    table = database["tables"]["docs"]
    layers = [("instance", layer(METADATA)), ("database", layer(database)), ("table", layer(table))]
    assert settings(*layers) == Settings(mode="keyword", page_size=20)
    assert sync_interval(*layers[0]) == 5
    assert declarations(*layers[2], "docs") == [
        Declaration(name="docs", table="docs", columns=("title", "body"), filter_columns=("category",))
    ]
