"""Laws of the public surface: `__all__` is all of it, type checkers see the same, and importing it costs nothing."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import datasette_vec_gemini as package

HEAVY = ["datasette", "mcp", "numpy", "onnxruntime", "pluggy", "sqlite_utils", "sqlite_vec", "tokenizers"]


def declared_imports():
    """Public name -> (module, name there), as the block for type checkers imports them."""
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    return {alias.asname or alias.name: (node.module, alias.name) for node in block.body for alias in node.names}


def run(program):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_all_is_sorted_and_is_what_dir_shows():
    assert package.__all__ == sorted(set(package.__all__))
    assert dir(package) == package.__all__


def test_type_checkers_see_exactly_the_public_names():
    assert sorted(declared_imports()) == package.__all__


@pytest.mark.parametrize("name", package.__all__)
def test_every_public_name_is_what_type_checkers_take_it_for(name):
    module, original = declared_imports()[name]
    assert getattr(package, name) is getattr(import_module(f"{package.__name__}.{module}"), original)


def test_a_star_import_brings_exactly_the_public_names():
    program = (
        "before = {*globals(), 'before'}; from datasette_vec_gemini import *; print(sorted({*globals()} - before))"
    )
    assert run(program) == f"{package.__all__}\n"


@pytest.mark.parametrize("name", ["Serach", "load", "find", "_private"])
def test_any_other_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=rf"^module 'datasette_vec_gemini' has no attribute '{name}'$"):
        getattr(package, name)


def test_a_submodule_can_still_be_imported_from_the_package():
    from datasette_vec_gemini import embedders, vectors

    assert (embedders.load, vectors.__name__) == (package.load_embedder, "datasette_vec_gemini.vectors")


def test_importing_the_package_loads_nothing_heavy():
    program = f"import sys, datasette_vec_gemini; print([name for name in {HEAVY} if name in sys.modules])"
    assert run(program) == "[]\n"


def test_values_and_errors_are_there_without_numpy_and_the_models_runtime():
    program = f"""if True:
        import sys
        from datasette_vec_gemini import Query, VecError
        Query("fish")
        print([name for name in {HEAVY} if name in sys.modules])
    """
    assert run(program) == "[]\n"


def test_the_package_says_that_it_is_typed():
    assert (Path(package.__file__).parent / "py.typed").exists()
