"""A hundred questions about Python's standard library: each verb of each thing."""

VERBS = ("parse", "read", "compare", "close", "sort", "send", "encode", "print", "split", "count")
THINGS = (
    "a date",
    "a file",
    "two lists",
    "a socket",
    "some text",
    "a thread",
    "a number",
    "an archive",
    "XML",
    "bytes",
)
QUESTIONS = [f"how do I {verb} {thing}" for verb in VERBS for thing in THINGS]
