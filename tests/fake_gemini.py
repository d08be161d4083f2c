"""Google's embedding API on loopback, faithful enough to drive the real SDKs; vectors are sums of word directions.

Run as a script it prints its URL and serves until it is killed.
"""

import argparse
import hashlib
import json
import math
import random
import re
import socket
import socketserver
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

import numpy as np

KEY = "AIzaSyCANARY-7f1d0c5b9e"
TOKEN = "fake-token"

# Input tokens by model.
MODELS = {"gemini-embedding-001": 2048, "gemini-embedding-2": 8192, "gemini-embedding-9-test": 8192}
WIDEST = 3072
PAYLOAD_LIMIT = 4_194_304
HANG_SECONDS = 120.0

TASK_TYPES = (
    "TASK_TYPE_UNSPECIFIED",
    "RETRIEVAL_QUERY",
    "RETRIEVAL_DOCUMENT",
    "SEMANTIC_SIMILARITY",
    "CLASSIFICATION",
    "CLUSTERING",
    "QUESTION_ANSWERING",
    "FACT_VERIFICATION",
    "CODE_RETRIEVAL_QUERY",
)

_PREFIX = re.compile(
    r"task: (?:search result|question answering|fact checking|code retrieval|classification|clustering"
    r"|sentence similarity) \| query: |title: (?P<title>.*?) \| text: ",
    re.DOTALL,
)
_WORD = re.compile(r"\w+")
_DEVELOPER = re.compile(r"/(?P<version>v1|v1beta)/models/(?P<model>[^/:]+)(?::(?P<action>\w+))?")
_VERTEX = re.compile(
    r"/(?P<version>v1|v1beta1)/(?P<name>projects/[^/]+/locations/[^/]+/publishers/google/models/(?P<model>[^/:]+))"
    r"(?::(?P<action>\w+))?"
)
_EMBED = {"embedContent", "batchEmbedContents"}


@dataclass(frozen=True)
class Received:
    """A request as it arrived. `status` is None while it is unanswered, and for good when the connection is dropped."""

    time: float
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    texts: list[str]
    fault: str | None
    status: int | None


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = "application/json; charset=UTF-8"
    location: str | None = None
    manner: Literal["plain", "drip", "drip-head", "drop", "drop-mid", "hang"] = "plain"


class _Refused(Exception):
    """Google's error object."""

    def __init__(self, code: int, status: str, message: str, *details: dict[str, Any]):
        super().__init__(message)
        self.code = code
        self.error: dict[str, Any] = {"code": code, "message": message, "status": status}
        if details:
            self.error["details"] = [
                {"@type": f"type.googleapis.com/google.rpc.{detail['type']}"}
                | {name: value for name, value in detail.items() if name != "type"}
                for detail in details
            ]

    def answer(self) -> _Answer:
        return _Answer(self.code, json.dumps({"error": self.error}, indent=2).encode())


def _invalid(message: str, *details: dict[str, Any]) -> _Refused:
    return _Refused(400, "INVALID_ARGUMENT", message, *details)


def _bad_key() -> _Refused:
    message = "API key not valid. Please pass a valid API key."
    service = {"service": "generativelanguage.googleapis.com"}
    return _invalid(
        message,
        {"type": "ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com", "metadata": service},
        {"type": "LocalizedMessage", "locale": "en-US", "message": message},
    )


def _unauthenticated(reason: str) -> _Refused:
    return _Refused(
        401,
        "UNAUTHENTICATED",
        "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
        "authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project.",
        {"type": "ErrorInfo", "reason": reason, "domain": "googleapis.com"},
    )


def _forbidden() -> _Refused:
    return _Refused(
        403,
        "PERMISSION_DENIED",
        "Method doesn't allow unregistered callers (callers without established identity). Please use API Key or "
        "other form of API consumer identity to call this API.",
    )


def _no_such_model(route: re.Match[str]) -> _Refused:
    if "name" in route.re.groupindex:
        message = (
            f"Publisher Model `{route['name']}` was not found or your project does not have access to it. Please "
            "ensure you are using a valid model version."
        )
    else:
        message = (
            f"models/{route['model']} is not found for API version {route['version']}, or is not supported for "
            f"{'countTokens' if route['action'] == 'countTokens' else 'embedContent'}. Call ListModels to see the "
            "list of available models and their supported methods."
        )
    return _Refused(404, "NOT_FOUND", message)


@dataclass(frozen=True)
class _Violation:
    per: Literal["Minute", "Day"]
    limit: int | None
    unit: Literal["Requests", "InputTokens"] = "Requests"

    def refusal(self, model: str, *, wait: float | None) -> _Refused:
        """A `limit` of None is not told, as Google's older answers do not."""
        counted = "requests" if self.unit == "Requests" else "input_token_count"
        metric = f"generativelanguage.googleapis.com/embed_content_free_tier_{counted}"
        message = (
            "You exceeded your current quota, please check your plan and billing details. For more information on "
            "this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits. "
        )
        violation: dict[str, Any] = {
            "quotaMetric": metric,
            "quotaId": f"EmbedContent{self.unit}Per{self.per}PerUserPerProjectPerModel-FreeTier",
            "quotaDimensions": {"location": "global", "model": model},
        }
        details: list[dict[str, Any]] = [
            {"type": "QuotaFailure", "violations": [violation]},
            {
                "type": "Help",
                "links": [
                    {
                        "description": "Learn more about Gemini API quotas",
                        "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
                    }
                ],
            },
        ]
        if self.limit is not None:
            violation["quotaValue"] = str(self.limit)
            message += f"\n* Quota exceeded for metric: {metric}, limit: {self.limit}, model: {model}"
        if self.limit == 0:
            metadata = {
                "service": "generativelanguage.googleapis.com",
                "quota_metric": metric,
                "quota_location": "global",
                "quota_limit": violation["quotaId"],
                "quota_limit_value": "0",
            }
            details.append(
                {
                    "type": "ErrorInfo",
                    "reason": "RATE_LIMIT_EXCEEDED",
                    "domain": "googleapis.com",
                    "metadata": metadata,
                }
            )
        if wait is not None:
            delay = f"{math.ceil(wait * 10 - 1e-6) / 10:g}s"
            message += f"\nPlease retry in {delay}."
            details.append({"type": "RetryInfo", "retryDelay": delay})
        return _Refused(429, "RESOURCE_EXHAUSTED", message, *details)


class _Quota:
    """What one model has given: a sliding window of (time, texts, tokens), and texts in all."""

    def __init__(self) -> None:
        self.window: deque[tuple[float, int, int]] = deque()
        self.today = 0

    def wait(self, column: int, need: int, limit: int | None, *, now: float, seconds: float) -> float | None:
        """Seconds until `need` fits under the limit: None when it does now, the whole window when it never will."""
        while self.window and self.window[0][0] <= now - seconds:
            self.window.popleft()
        if limit is None:
            return None
        over = sum(entry[column] for entry in self.window) + need - limit
        if over <= 0:
            return None
        for entry in self.window:
            over -= entry[column]
            if over <= 0:
                return entry[0] + seconds - now
        return seconds


class _Directions:
    """One direction for each name in one model's space of one size; a smaller size is the beginning of a larger."""

    def __init__(self, model: str, dimensions: int):
        self._model = model
        self._lock = threading.Lock()
        self._row: dict[str, int] = {}
        self._table = np.empty((256, dimensions), np.float32)

    def _add(self, name: str) -> int:
        count, dimensions = len(self._row), self._table.shape[1]
        if count == len(self._table):
            self._table = np.concatenate([self._table, np.empty_like(self._table)])
        seed = hashlib.shake_256(f"{self._model}\0{name}".encode(errors="surrogatepass"))
        self._table[count] = np.frombuffer(seed.digest(2 * dimensions), "<i2")
        self._row[name] = count
        return count

    def sum(self, words: list[str], extra: str, weight: float) -> np.ndarray:
        """The unit vector of words plus `weight` times their length in the direction `extra`."""
        with self._lock:
            rows = [self._row[word] if word in self._row else self._add(word) for word in words]
            other = self._row[extra] if extra in self._row else self._add(extra)
            table = self._table
        # By the counts, so that it is the same at every size.
        length = math.sqrt(sum(count * count for count in Counter(rows).values()))
        total = table[rows].sum(axis=0, dtype=np.float64) + weight * length * table[other].astype(np.float64)
        return total / math.sqrt(np.sum(total * total))


# A number is twelve bytes, of which each third is looked up: sign, whole and first decimal; four; three and a comma.
_HEAD = np.array([f"{sign}{n // 10}.{n % 10}" for sign in " -" for n in range(11)], "S4").view(np.uint32)
_MIDDLE = np.array([f"{n:04}" for n in range(10_000)], "S4").view(np.uint32)
_TAIL = np.array([f"{n:03}," for n in range(1000)], "S4").view(np.uint32)


def _render(units: np.ndarray) -> list[bytes]:
    """Rows of hundred-millionths as JSON arrays; json.dumps would take ten times as long."""
    size = np.abs(units)
    cells = np.empty((*units.shape, 3), np.uint32)
    cells[..., 0] = _HEAD[size // 10_000_000 + 11 * (units < 0)]
    cells[..., 1] = _MIDDLE[size // 1000 % 10_000]
    cells[..., 2] = _TAIL[size % 1000]
    return [b"[" + row.tobytes()[:-1] + b"]" for row in cells]


def _shorter(values: bytes) -> bytes:
    return b"[" + b",".join(values[1:-1].split(b",")[:-1]) + b"]"


def _first(number: bytes) -> Callable[[bytes], bytes]:
    return lambda values: b"[" + b",".join([number, *values[1:-1].split(b",")[1:]]) + b"]"


def _all(value: bytes) -> Callable[[bytes], bytes]:
    return lambda values: b"[" + b",".join([value] * (values.count(b",") + 1)) + b"]"


def _one(change: Callable[[bytes], bytes]) -> Callable[[list[bytes]], list[bytes]]:
    """The change done to the vector in the middle."""

    def changed(vectors: list[bytes]) -> list[bytes]:
        middle = len(vectors) // 2
        return [*vectors[:middle], change(vectors[middle]), *vectors[middle + 1 :]]

    return changed


def _shuffled(vectors: list[bytes]) -> list[bytes]:
    order = list(range(len(vectors)))
    random.Random(0).shuffle(order)
    if order == sorted(order):
        order.reverse()
    return [vectors[place] for place in order]


_SPOILED: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "wrong-dims": lambda vectors: [_shorter(values) for values in vectors],
    "wrong-dims-one": _one(_shorter),
    "too-few": lambda vectors: vectors[:-1],
    "too-many": lambda vectors: [*vectors, vectors[-1]],
    "empty-values": _one(lambda values: b"[]"),
    "null-values": _one(lambda values: b"null"),
    "nan": _one(_first(b"NaN")),
    "infinite": _one(_first(b"1e999")),
    "zeros": _one(_all(b"0")),
    "strings": _one(_all(b'"many"')),
    "reordered": lambda vectors: vectors[::-1],
    "rotated": lambda vectors: [*vectors[1:], *vectors[:1]],
    "shuffled": _shuffled,
}

_REFUSALS: dict[str, Callable[[re.Match[str]], _Refused]] = {
    "429-bare": lambda route: _Refused(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
    "429-limit-0": lambda route: _Violation("Minute", 0).refusal(route["model"], wait=0.3),
    "400": lambda route: _invalid("Request contains an invalid argument."),
    "400-key": lambda route: _bad_key(),
    "401": lambda route: _unauthenticated("ACCESS_TOKEN_TYPE_UNSUPPORTED"),
    "403": lambda route: _forbidden(),
    "404": _no_such_model,
    "408": lambda route: _Refused(408, "DEADLINE_EXCEEDED", "The request timed out. Please try again."),
    "500": lambda route: _Refused(
        500,
        "INTERNAL",
        "An internal error has occurred. Please retry or report in "
        "https://developers.generativeai.google/guide/troubleshooting",
    ),
    "503": lambda route: _Refused(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    "504": lambda route: _Refused(504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
}

_PAGE = "text/html; charset=UTF-8"
_UNSENT: dict[str, _Answer] = {
    "502-html": _Answer(502, b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>", _PAGE),
    "hang": _Answer(200, b"", manner="hang"),
    "drop": _Answer(200, b"", manner="drop"),
}
_RESENT: dict[str, Callable[[_Answer], _Answer]] = {
    "drip": lambda answer: replace(answer, manner="drip"),
    "drip-head": lambda answer: replace(answer, manner="drip-head"),
    "drop-mid": lambda answer: replace(answer, manner="drop-mid"),
    "truncated": lambda answer: replace(answer, body=answer.body[: len(answer.body) // 2]),
    "malformed": lambda answer: replace(answer, body=b'{"embeddings": [ }, not JSON'),
    "html": lambda answer: _Answer(200, b"<html><body>Sign in to the network</body></html>", _PAGE),
    "empty-body": lambda answer: replace(answer, body=b""),
}

FAULTS = frozenset({*_SPOILED, *_REFUSALS, *_UNSENT, *_RESENT, "429", "429-daily", "redirect"})


@dataclass(frozen=True)
class _Request:
    """One text to embed, as it arrived."""

    text: str
    task_type: str | None
    title: str | None
    dimensions: int


def _tokens(text: str) -> int:
    return math.ceil(len(text.encode(errors="surrogatepass")) / 4)


def _camel(fields: Any, allowed: set[str], where: str) -> dict[str, Any]:
    """A JSON object's fields under the names of the API, which takes both spellings and nothing unknown."""
    if not isinstance(fields, dict):
        raise _invalid(f"Invalid value at '{where}'")
    found = {}
    for name, value in fields.items():
        camel = re.sub("_(.)", lambda letter: letter[1].upper(), name)
        if camel not in allowed:
            message = f"Invalid JSON payload received. Unknown name \"{name}\" at '{where}': Cannot find field."
            violation = {"field": where, "description": message}
            raise _invalid(message, {"type": "BadRequest", "fieldViolations": [violation]})
        found[camel] = value
    return found


def _text(content: Any, where: str) -> str:
    """The text of all parts: a Content is one thing to embed, however many parts it has."""
    parts = _camel(content, {"parts", "role"}, where).get("parts")
    found = []
    for number, part in enumerate(parts if isinstance(parts, list) else [parts] if parts else []):
        text = _camel(part, {"text"}, f"{where}.parts[{number}]").get("text")
        if not isinstance(text, str | None):
            raise _invalid(f"Invalid value at '{where}.parts[{number}].text' (TYPE_STRING), {text}")
        if not text:
            raise _invalid(f"* {where}: content contains an empty Part.")
        found.append(text)
    if not found:
        raise _invalid(f"* {where}: content is required.")
    return "\n".join(found)


def _task_type(value: Any, where: str) -> str | None:
    if isinstance(value, int) and 0 <= value < len(TASK_TYPES):
        value = TASK_TYPES[value]
    if value is not None and value not in TASK_TYPES:
        kind = "type.googleapis.com/google.ai.generativelanguage.v1beta.TaskType"
        raise _invalid(f"Invalid value at '{where}.task_type' ({kind}), {json.dumps(value)}")
    return None if value == TASK_TYPES[0] else value


def _request(fields: Any, where: str) -> tuple[_Request, str | None]:
    """The request and the model that it names."""
    options = {"taskType", "title", "outputDimensionality", "autoTruncate"}
    given = _camel(fields, {"model", "content", "embedContentConfig", *options}, where)
    given |= _camel(given.get("embedContentConfig", {}), options, f"{where}.embed_content_config")
    dimensions = given.get("outputDimensionality", WIDEST)
    if not isinstance(dimensions, int) or not 1 <= dimensions <= WIDEST:
        raise _invalid(f"* {where}.output_dimensionality: must be in the range [1, {WIDEST}], got {dimensions}")
    text = _text(given.get("content"), f"{where}.content")
    task_type = _task_type(given.get("taskType"), where)
    if not isinstance(given.get("title"), str | None):
        raise _invalid(f"Invalid value at '{where}.title' (TYPE_STRING), {json.dumps(given['title'])}")
    return _Request(text, task_type, given.get("title"), dimensions), given.get("model")


def _texts(body: Any) -> list[str]:
    """The texts of a body that may be anything."""
    requests = body.get("requests", [body]) if isinstance(body, dict) else []
    found = []
    for request in requests if isinstance(requests, list) else []:
        content = request.get("content") if isinstance(request, dict) else None
        parts = content.get("parts") if isinstance(content, dict) else None
        texts = [part.get("text") for part in parts or [] if isinstance(part, dict)] if isinstance(parts, list) else []
        found.append("\n".join(text for text in texts if isinstance(text, str)))
    return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "_Server"

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        if len(raw) < length or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._send(*self.server.fake.answer(self.command, self.path, headers, raw))

    def do_GET(self) -> None:
        self.do_POST()

    def _send(self, received: Received, answer: _Answer) -> None:
        fake, manner = self.server.fake, answer.manner
        if manner in {"hang", "drop", "drop-mid"}:
            self.close_connection = True
        if manner == "hang":
            fake.closing.wait(HANG_SECONDS)
        if manner in {"hang", "drop"}:
            return
        fields = [
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}",
            *([f"Location: {answer.location}"] if answer.location else []),
            "\r\n",
        ]
        head = "\r\n".join(fields).encode()
        if manner == "drop-mid":
            self.wfile.write(head + answer.body[: len(answer.body) // 2])
            return
        # Before it is sent: whoever has the answer finds it recorded.
        fake.answered(received, answer.status)
        if manner == "plain":
            self.wfile.write(head + answer.body)
            return
        at_once = len(head) if manner == "drip" else 0
        answered = head + answer.body
        self.wfile.write(answered[:at_once])
        for place in range(at_once, len(answered)):
            if fake.closing.wait(0.2):
                self.close_connection = True
                return
            self.wfile.write(answered[place : place + 1])


class _Server(ThreadingHTTPServer):
    """Closes its connections and waits for their threads when it is closed."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, fake: "FakeGemini", port: int):
        self.fake = fake
        self._live: dict[socket.socket, threading.Thread] = {}
        super().__init__(("127.0.0.1", port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer would ask DNS for a name.
        socketserver.TCPServer.server_bind(self)

    def accept(self) -> None:
        """Like serve_forever, which takes its polling interval to stop."""
        while True:
            request, address = self.get_request()
            if self.fake.closing.is_set():
                request.close()
                return
            self.process_request(request, address)

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), name="fake-gemini", daemon=True
        )
        self._live[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self._live.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):
            self.fake.errors.append(error)

    def server_close(self) -> None:
        super().server_close()
        live = list(self._live.items())
        for request, _ in live:
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for _, thread in live:
            thread.join(5)


_ports: set[int] = set()


def _server(fake: "FakeGemini", port: int) -> _Server:
    """On a port that no other fake of this process had, where it may choose.

    The product remembers by key and address what an account has used, and which limits the service told.
    """
    while (server := _Server(fake, port)).server_address[1] in _ports and not port:
        server.server_close()
    _ports.add(server.server_address[1])
    return server


class FakeGemini:
    """A context manager; what went wrong inside the fake itself is raised when it closes."""

    def __init__(
        self,
        *,
        latency_seconds: float = 0.0,
        texts_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        texts_per_day: int | None = None,
        window_seconds: float = 60.0,
        overflow: Literal["refuse", "cut"] = "refuse",
        tell_quota: bool = True,
        key: str = KEY,
        port: int = 0,
    ):
        self.latency_seconds = latency_seconds
        self.texts_per_minute = texts_per_minute
        self.tokens_per_minute = tokens_per_minute
        self.texts_per_day = texts_per_day
        self.window_seconds = window_seconds
        self.overflow = overflow
        self.tell_quota = tell_quota
        self.key = key
        self.requests: list[Received] = []
        self.faults: deque[str] = deque()
        self.always: str | None = None
        self.poison: set[str] = set()
        self.embedded: Counter[str] = Counter()
        self.followed = False
        self.closing = threading.Event()
        self.errors: list[BaseException | None] = []
        self._port = port
        self._lock = threading.Lock()
        self._quotas: dict[str, _Quota] = {}
        self._spaces: dict[tuple[str, int], _Directions] = {}

    def __enter__(self) -> Self:
        self._servers = (_server(self, self._port), _server(self, 0))
        self.url, self._elsewhere = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        self._threads = [
            threading.Thread(target=server.accept, name="fake-gemini", daemon=True) for server in self._servers
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.closing.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            # Wakes it from its accept().
            socket.create_connection(server.server_address).close()
            thread.join()
            server.server_close()
        if self.errors and kind is None:
            raise ExceptionGroup("the fake failed", self.errors)

    def vector(
        self,
        text: str,
        *,
        model: str = "gemini-embedding-2",
        task_type: str | None = None,
        title: str | None = None,
        dimensions: int = 768,
    ) -> np.ndarray:
        """What a text is answered with, as float64 exactly as it is read from the JSON."""
        return self._units(model, _Request(text, task_type, title, dimensions)) / 1e8

    def _units(self, model: str, request: _Request) -> np.ndarray:
        """The vector in hundred-millionths, the precision of the wire."""
        with self._lock:
            place = (model, request.dimensions)
            space = self._spaces.get(place) or self._spaces.setdefault(place, _Directions(*place))
        # Cutting can only shorten a text that is over the limit.
        text = request.text.encode(errors="surrogatepass")[: 4 * MODELS[model]].decode(errors="ignore")
        if model == "gemini-embedding-001":
            # Unset behaves like a query.
            extra, weight = f"\0task {request.task_type or 'RETRIEVAL_QUERY'}", 0.3
            words = [*_WORD.findall((request.title or "").lower()), *_WORD.findall(text.lower())]
        else:
            extra, weight, words = self._prefixed(text)
        vector = space.sum(words or ["\0wordless"], extra, weight)
        if model == "gemini-embedding-001" and request.dimensions < WIDEST:
            vector *= 0.7
        return np.rint(vector * 1e8).astype(np.int64)

    @staticmethod
    def _prefixed(text: str) -> tuple[str, float, list[str]]:
        prefix = _PREFIX.match(text)
        if prefix is None:
            return "\0bare", 1.0, _WORD.findall(text.lower())
        title = prefix["title"] or "none"
        words = _WORD.findall(text[prefix.end() :].lower())
        if title == "none":
            return f"\0prefix {prefix[0]}", 0.3, words
        return "\0prefix title: none | text: ", 0.3, [*_WORD.findall(title.lower()), *words]

    def answered(self, received: Received, status: int) -> None:
        with self._lock:
            for place in range(len(self.requests) - 1, -1, -1):
                if self.requests[place] is received:
                    self.requests[place] = replace(received, status=status)
                    return

    def answer(self, method: str, path: str, headers: dict[str, str], raw: bytes) -> tuple[Received, _Answer]:
        arrived = time.monotonic()
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        url = urlsplit(path)
        route = _DEVELOPER.fullmatch(url.path) or _VERTEX.fullmatch(url.path)
        embeds = route is not None and method == "POST" and route["action"] in _EMBED
        refused = self._stranger(route, headers, url.query) if route else None
        with self._lock:
            fault = None
            if embeds and refused is None:
                fault = self.faults.popleft() if self.faults else self.always
            received = Received(arrived, method, path, headers, body, _texts(body) if embeds else [], fault, None)
            self.requests.append(received)
        if fault is not None and fault not in FAULTS:
            raise ValueError(f"no such fault: {fault}")
        try:
            if refused:
                raise refused
            answer = self._routed(received, url.path, route, raw)
        except _Refused as refusal:
            answer = refusal.answer()
        if self.latency_seconds:
            self.closing.wait(self.latency_seconds)
        return received, answer

    def _stranger(self, route: re.Match[str], headers: dict[str, str], query: str) -> _Refused | None:
        if route.re is _VERTEX:
            bearer = headers.get("authorization")
            if bearer == f"Bearer {TOKEN}":
                return None
            return _unauthenticated("CREDENTIALS_MISSING" if bearer is None else "ACCESS_TOKEN_TYPE_UNSUPPORTED")
        key = headers.get("x-goog-api-key")
        if "key" in parse_qs(query, keep_blank_values=True):
            return _bad_key()
        if not key:
            return _forbidden()
        return None if key == self.key else _bad_key()

    def _routed(self, received: Received, path: str, route: re.Match[str] | None, raw: bytes) -> _Answer:
        if path == "/elsewhere":
            self.followed = True
            return _Answer(200, b"{}")
        if path == "/token" and received.method == "POST":
            return self._token(raw)
        if route and received.method == "POST" and route["action"] in _EMBED:
            return self._faulty(received, route, raw)
        if route and received.method == "POST" and route["action"] == "countTokens":
            return self._count(received, route)
        if route and received.method == "GET" and route["action"] is None:
            return self._model(route)
        return _Answer(404, b"<!DOCTYPE html><title>Error 404 (Not Found)!!1</title>", _PAGE)

    @staticmethod
    def _token(raw: bytes) -> _Answer:
        """For a service account, whose signature is not verified."""
        form = parse_qs(raw.decode(errors="replace"))
        if form.get("grant_type") != ["urn:ietf:params:oauth:grant-type:jwt-bearer"] or "assertion" not in form:
            return _Answer(400, b'{"error": "invalid_grant", "error_description": "Invalid JWT."}')
        return _Answer(200, json.dumps({"access_token": TOKEN, "expires_in": 3599, "token_type": "Bearer"}).encode())

    @staticmethod
    def _model(route: re.Match[str]) -> _Answer:
        if route["model"] not in MODELS:
            raise _no_such_model(route)
        described = {
            "name": f"models/{route['model']}",
            "version": "001",
            "displayName": route["model"].replace("-", " ").title(),
            "inputTokenLimit": MODELS[route["model"]],
            "outputTokenLimit": 1,
            "supportedGenerationMethods": ["embedContent", "countTextTokens", "countTokens", "asyncBatchEmbedContent"],
        }
        return _Answer(200, json.dumps(described).encode())

    @staticmethod
    def _count(received: Received, route: re.Match[str]) -> _Answer:
        if route["model"] not in MODELS:
            raise _no_such_model(route)
        contents = received.body.get("contents") if isinstance(received.body, dict) else None
        if not isinstance(contents, list):
            raise _invalid("* CountTokensRequest.contents: contents is not specified")
        total = sum(_tokens(_text(content, f"contents[{place}]")) for place, content in enumerate(contents))
        return _Answer(200, json.dumps({"totalTokens": total}).encode())

    def _faulty(self, received: Received, route: re.Match[str], raw: bytes) -> _Answer:
        fault = received.fault
        if fault == "429":
            raise self._over("Minute", self.texts_per_minute or 100).refusal(route["model"], wait=0.3)
        if fault == "429-daily":
            raise self._over("Day", self.texts_per_day or 1000).refusal(route["model"], wait=3600)
        if fault in _REFUSALS:
            raise _REFUSALS[fault](route)
        if fault in _UNSENT:
            return _UNSENT[fault]
        if fault == "redirect":
            return _Answer(302, b"", location=f"{self._elsewhere}/elsewhere")
        answer = self._embed(received, route, raw)
        return _RESENT[fault](answer) if fault in _RESENT else answer

    def _embed(self, received: Received, route: re.Match[str], raw: bytes) -> _Answer:
        model, batch = route["model"], route["action"] == "batchEmbedContents"
        requests = self._requests(received.body, route, raw)
        if any(poison in request.text for request in requests for poison in tuple(self.poison)):
            raise _REFUSALS["400"](route)
        tokens = [min(_tokens(request.text), MODELS[model]) for request in requests]
        with self._lock:
            self._spend(model, len(requests), sum(tokens))
            if received.fault is None:
                self.embedded.update(request.text for request in requests)
        vectors = self._rendered(model, requests)
        if received.fault in _SPOILED:
            vectors = _SPOILED[received.fault](vectors)
        fields = [b'{"values":' + values + b"}" for values in vectors]
        if batch:
            found = b'"embeddings":[' + b",".join(fields) + b"]"
        else:
            found = b'"embedding":' + (fields[0] if fields else b"{}")
        if model != "gemini-embedding-001":
            usage = {
                "promptTokenCount": sum(tokens),
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": sum(tokens)}],
            }
            found += b',"usageMetadata":' + json.dumps(usage).encode()
        return _Answer(200, b"{" + found + b"}")

    def _rendered(self, model: str, requests: list[_Request]) -> list[bytes]:
        units = [self._units(model, request) for request in requests]
        if len({len(row) for row in units}) == 1:
            return _render(np.stack(units))
        return [_render(row[None])[0] for row in units]

    def _requests(self, body: Any, route: re.Match[str], raw: bytes) -> list[_Request]:
        """The request's texts, all of them good, or a refusal of the whole."""
        if len(raw) > PAYLOAD_LIMIT:
            raise _invalid(f"Request payload size exceeds the limit: {PAYLOAD_LIMIT} bytes.")
        if body is None:
            raise _invalid("Invalid JSON payload received. Unexpected token.")
        if route["model"] not in MODELS:
            raise _no_such_model(route)
        if route["action"] == "embedContent":
            return [self._checked(body, route, "EmbedContentRequest", must_name=False)]
        given = _camel(body, {"requests"}, "BatchEmbedContentsRequest").get("requests")
        where = "BatchEmbedContentsRequest.requests"
        if not isinstance(given, list) or not given:
            raise _invalid(f"* {where}: requests is not specified")
        vertex = route.re is _VERTEX
        limit = 250 if vertex else 100
        if len(given) > limit:
            raise _invalid(f"* {where}: at most {limit} requests can be in one batch\n")
        return [
            self._checked(fields, route, f"{where}[{place}]", must_name=not vertex)
            for place, fields in enumerate(given)
        ]

    def _checked(self, fields: Any, route: re.Match[str], where: str, *, must_name: bool) -> _Request:
        request, named = _request(fields, where)
        model = route["model"]
        if named is None and must_name:
            raise _invalid(f"* {where}.model: model is not specified")
        if named is not None and str(named).rpartition("/")[2] != model:
            raise _invalid(f"* {where}.model: model must match the model in the URL, models/{model}, got {named}")
        if model == "gemini-embedding-001" and request.title and request.task_type != "RETRIEVAL_DOCUMENT":
            raise _invalid(f"* {where}.title: title is only applicable when task_type is RETRIEVAL_DOCUMENT")
        if self.overflow == "refuse" and _tokens(request.text) > MODELS[model]:
            raise _invalid(
                f"* {where}.content: the input token count ({_tokens(request.text)}) exceeds the maximum number of "
                f"tokens allowed ({MODELS[model]})."
            )
        return request

    def _over(
        self, per: Literal["Minute", "Day"], limit: int | None, unit: Literal["Requests", "InputTokens"] = "Requests"
    ) -> _Violation:
        return _Violation(per, limit if self.tell_quota else None, unit)

    def _spend(self, model: str, texts: int, tokens: int) -> None:
        """Refuses what is over a quota; what is refused costs nothing."""
        quota, now = self._quotas.setdefault(model, _Quota()), time.monotonic()
        if self.texts_per_day is not None and quota.today + texts > self.texts_per_day:
            raise self._over("Day", self.texts_per_day).refusal(model, wait=None)
        wait = quota.wait(1, texts, self.texts_per_minute, now=now, seconds=self.window_seconds)
        if wait is not None:
            raise self._over("Minute", self.texts_per_minute).refusal(model, wait=wait)
        wait = quota.wait(2, tokens, self.tokens_per_minute, now=now, seconds=self.window_seconds)
        if wait is not None:
            raise self._over("Minute", self.tokens_per_minute, "InputTokens").refusal(model, wait=wait)
        quota.window.append((now, texts, tokens))
        quota.today += texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--texts-per-minute", type=int)
    parser.add_argument("--tokens-per-minute", type=int)
    parser.add_argument("--texts-per-day", type=int)
    options = parser.parse_args()
    with FakeGemini(
        latency_seconds=options.latency,
        texts_per_minute=options.texts_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        texts_per_day=options.texts_per_day,
        port=options.port,
    ) as fake:
        sys.stdout.write(f"{fake.url}\n")
        sys.stdout.flush()
        while True:
            time.sleep(1)
            # Nobody reads them here, and a long run would fill the memory.
            fake.requests.clear()
            fake.embedded.clear()


if __name__ == "__main__":
    main()
