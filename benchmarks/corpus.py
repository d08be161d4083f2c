"""Ten thousand rows of real prose, or more: what Python's documentation has, again and with other words at the end."""

import random

from datasette_vec_gemini.demo.rows import standard_library


def documentation(count: int) -> list[tuple[str, str, str, str]]:
    """Name, module, kind and text of so many docstrings; no two texts are the same where they come again."""
    texts = list(standard_library())
    rng = random.Random(0)
    return [
        (row["name"], row["module"], row["kind"], f"{row['doc']}\nSee also: {rng.choice(texts)['name']}")
        for row in (texts[number % len(texts)] for number in range(count))
    ]
