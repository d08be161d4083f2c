"""Rows for a demonstration database: the documentation of Python's own standard library."""

import enum
import importlib
import inspect
import io
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cached_property
from pathlib import Path
from types import ModuleType

_LEFT_OUT_BY_REASON = {
    "acts when imported": "antigravity readline rlcompleter this",
    "is a program, no library": "ensurepip idlelib lib2to3 pydoc_data turtledemo",
    "is known as os or os.path": "genericpath nt ntpath posix posixpath",
    "is missing from many installations": "curses tkinter turtle",
    "is gone from a later version": """aifc asynchat asyncore audioop cgi cgitb chunk crypt distutils imghdr imp mailcap
        msilib nis nntplib nturl2path ossaudiodev pipes smtpd sndhdr spwd sre_compile sre_constants sre_parse sunau
        telnetlib uu xdrlib""",
    "is seldom asked for today": "mailbox optparse wsgiref xmlrpc",
    "is for those who read and import Python code": """ast bdb importlib.abc importlib.readers importlib.resources.abc
        importlib.resources.readers importlib.resources.simple importlib.simple modulefinder opcode pickletools pyclbr
        symtable zipimport""",
    "is behind a module that tells the same": """asyncio.base_events asyncio.base_subprocess asyncio.proactor_events
        asyncio.selector_events asyncio.sslproto asyncio.unix_events asyncio.windows_events ctypes.macholib
        ctypes.wintypes encodings multiprocessing.dummy pyexpat xml.dom.expatbuilder xml.dom.minicompat
        xml.dom.xmlbuilder xml.sax""",
}
_LEFT_OUT = frozenset(" ".join(_LEFT_OUT_BY_REASON.values()).split())
_BOILERPLATE = re.compile(
    r"(See (the )?(class|base class|help)\b|Initialize self|Alias for field number )", re.IGNORECASE
)
_SHORTEST_DOC = 20
_ADDRESS = re.compile(r"<(?:[^<>]|<[^<>]*>)*\b0x[0-9a-fA-F]+(?:[^<>]|<[^<>]*>)*>")
_SHOWABLE = (type(None), bool, int, float, str, bytes, tuple, type, enum.Enum)


class _Elided:
    def __repr__(self) -> str:
        return "..."


def standard_library() -> Iterator[dict[str, str]]:
    """Yield a row (name, module, kind, signature, doc) per documented public object, ordered by module, then name.

    Modules are imported one at a time; the process's output and warnings are held back meanwhile, and a module that
    this platform lacks is passed over. An object reachable under several names appears once, under the one its users
    type, and a docstring repeated within a module counts once. Rows vary with Python's version and platform, never
    between two runs on the same one (unless something there replaced the library's functions, as debuggers do).
    """
    seen: dict[int, object] = {}
    names: set[str] = set()
    for top in sorted(sys.stdlib_module_names):
        for module_name in _walk_modules(top):
            rows: dict[str, dict[str, str]] = {}
            with _silence():
                for row in _describe_module(module_name, seen):
                    if row["name"] not in names:
                        rows.setdefault(row["name"], row)
            names.update(rows)
            yield from (rows[name] for name in sorted(rows))


@contextmanager
def _silence() -> Iterator[None]:
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _walk_modules(name: str) -> Iterator[str]:
    leaf = name.rpartition(".")[2]
    if leaf.startswith("_") or leaf in {"test", "tests"} or name in _LEFT_OUT:
        return
    try:
        with _silence():
            module = importlib.import_module(name)
    except Exception:  # noqa: BLE001  # a module of another platform may fail with more than ImportError
        return
    yield name
    children = [child.name for child in pkgutil.iter_modules(getattr(module, "__path__", ()))]
    for child in ["path"] if name == "os" else sorted(children):
        yield from _walk_modules(f"{name}.{child}")


def _describe_module(module_name: str, seen: dict[int, object]) -> Iterator[dict[str, str]]:
    docs: set[str] = set()
    for name, kind, item in _list_objects(importlib.import_module(module_name), module_name):
        target = getattr(item, "__func__", item)
        doc = _read_doc(target)
        if id(target) not in seen:
            seen[id(target)] = target
            if doc and doc not in docs:
                docs.add(doc)
                signature = "" if kind in ("module", "property") else _format_signature(target)
                yield {"name": name, "module": module_name, "kind": kind, "signature": signature, "doc": doc}


def _list_objects(module: ModuleType, module_name: str) -> Iterator[tuple[str, str, object]]:
    yield module_name, "module", module
    prefix = "" if module_name == "builtins" else f"{module_name}."
    members = sorted(_list_members(module, module_name), key=_rank_name)
    for name, item in members:
        yield prefix + name, "class" if inspect.isclass(item) else "function", item
    for class_name, cls in members:
        if inspect.isclass(cls):
            for base in (cls, *(base for base in cls.__mro__[1:] if base.__name__.startswith("_"))):
                for name, item in sorted(vars(base).items(), key=_rank_name):
                    if kind := "" if name.startswith("_") else _classify_attribute(item):
                        yield f"{prefix}{class_name}.{name}", kind, item


def _rank_name(named: tuple[str, object]) -> tuple[bool, int, str]:
    """Sort an object's own name before its aliases, then `set` before `frozenset`: the first told keeps the doc."""
    name, item = named
    return name != getattr(item, "__name__", name), len(name), name


def _list_members(module: ModuleType, module_name: str) -> Iterator[tuple[str, object]]:
    exported = getattr(module, "__all__", None)
    for name in vars(module) if exported is None else exported:
        item = None if name.startswith("_") else getattr(module, name, None)
        is_documentable = inspect.isclass(item) or inspect.isroutine(item)
        if is_documentable and _is_at_home(item, module_name, exported=exported is not None):
            yield name, item


def _is_at_home(item: object, module_name: str, *, exported: bool) -> bool:
    home = getattr(item, "__module__", None) or module_name
    if module_name == "builtins" or f"{home}.".startswith(f"{module_name}."):
        return True
    if not exported:
        return str(home).startswith("_" + module_name.partition(".")[0])
    private = home in _LEFT_OUT or "._" in f".{home}"
    return private or getattr(sys.modules.get(home), getattr(item, "__name__", ""), None) is not item


def _classify_attribute(item: object) -> str:
    if isinstance(item, cached_property) or inspect.isdatadescriptor(item):
        return "property"
    return "method" if isinstance(item, (staticmethod, classmethod)) or inspect.isroutine(item) else ""


def _read_doc(item: object) -> str:
    docs = [getattr(item, "__doc__", None)]
    if inspect.isclass(item) and "__init__" in vars(item):
        docs.append(item.__init__.__doc__)
    for doc in docs:
        text = inspect.cleandoc(doc) if isinstance(doc, str) else ""
        if len(text) >= _SHORTEST_DOC and not _BOILERPLATE.match(text):
            return text
    return ""


def _format_signature(item: object) -> str:
    try:
        signature = inspect.signature(item)  # type: ignore[arg-type]
    except (TypeError, ValueError, NameError, AttributeError):
        return ""
    parameters = [
        parameter if _is_showable(parameter.default) else parameter.replace(default=_Elided())
        for parameter in signature.parameters.values()
    ]
    return _ADDRESS.sub("...", str(signature.replace(parameters=parameters)))


def _is_showable(default: object) -> bool:
    """Tell defaults that read the same everywhere from those holding this machine's environment or paths."""
    is_path = isinstance(default, str) and len(default) > 1 and Path(default).is_absolute()
    return isinstance(default, _SHOWABLE) and not is_path
