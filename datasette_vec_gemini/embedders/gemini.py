"""`gemini[:MODEL[@DIMENSIONS]]`: Google's embedding models, through the official SDK google-genai.

Measured or read at its source (google-genai 3.4): a list of strings becomes one vector unless each text is a `Content`
of its own; neither timeouts nor retries are set; an answer is not checked in any way; a dropped connection and
broken JSON come out as exceptions of the SDK's HTTP client. gemini-embedding-2 ignores task types and wants prefixes in
the text; gemini-embedding-001 wants task types, and its vectors are not of unit length unless all 3,072 dimensions are
asked for.
"""

from __future__ import annotations

import atexit
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..access import Access
from ..errors import EmbedderUnavailable, EmbeddingFailed, InvalidVector, QuotaReached, UnknownEmbedder
from .remote import RemoteEmbedder
from .service import Model, Reply, Service, Transient

if TYPE_CHECKING:
    from google.genai import Client

DEFAULT = "gemini-embedding-2"
DIMENSIONS = 768
MODELS = {
    model.name: model
    for model in (
        Model(name="gemini-embedding-2", max_tokens=8_192, max_dimensions=3_072, scheme="prefix"),
        Model(name="gemini-embedding-001", max_tokens=2_048, max_dimensions=3_072, scheme="task_type"),
    )
}
LEAST_DIMENSIONS = 128
RETIRED = re.compile(r"text-embedding-004|(text)?embedding-(gecko-)?001|textembedding-gecko.*|.*-exp(-.*)?")
BASE_URL = "https://generativelanguage.googleapis.com/"
ANSWER_BYTES = 64_000_000
CHECK_SECONDS = 5.0
KEYS_PAGE = "https://aistudio.google.com/apikey"

_REST = re.compile(r"(?::(?:models/)?(?P<model>[A-Za-z0-9][A-Za-z0-9._-]{0,99}))?(?:@(?P<dimensions>\d{1,5}))?")


def load(rest: str, access: Access) -> RemoteEmbedder:
    """From `""`, `":MODEL"`, `"@DIMENSIONS"` or both; asks nothing of the network, nor for a key, until it embeds."""
    return embedder("gemini", rest, access, GenaiService)


def embedder(name: str, rest: str, access: Access, service: Callable[[Access, str], Service]) -> RemoteEmbedder:
    """An embedder of one of Google's models behind this service. Raises UnknownEmbedder."""
    spelled = f"{name}{rest}"
    match = _REST.fullmatch(rest)
    if match is None:
        raise UnknownEmbedder(f"{spelled!r}: write {name}, {name}:MODEL or {name}:MODEL@DIMENSIONS")
    called = match["model"] or DEFAULT
    if RETIRED.fullmatch(called):
        raise UnknownEmbedder(
            f"Google has retired {called}: use {name}:{DEFAULT}; vectors of one model cannot be compared with those of "
            "another, so an index has to be rebuilt with it"
        )
    model = MODELS.get(called)
    dimensions = int(match["dimensions"] or DIMENSIONS)
    if model is None:
        if access.task_scheme is None or not match["dimensions"]:
            raise UnknownEmbedder(
                f"{called} is not known here (known are {', '.join(MODELS)}): to use it all the same, write "
                f"{name}:{called}@DIMENSIONS and set task_scheme to prefix or task_type"
            )
        model = Model(name=called, max_tokens=2_048, max_dimensions=4_096, scheme=access.task_scheme)
    if not LEAST_DIMENSIONS <= dimensions <= model.max_dimensions:
        raise UnknownEmbedder(
            f"{spelled!r}: {called} has {LEAST_DIMENSIONS} to {model.max_dimensions:,} dimensions; Google recommends "
            "768, 1536 or 3072"
        )
    short = name if called == DEFAULT else f"{name}:{called}"
    full = short if dimensions == DIMENSIONS and model.name in MODELS else f"{name}:{called}@{dimensions}"
    return RemoteEmbedder(service(access, called), model, name=full, dimensions=dimensions, access=access)


class GenaiService:
    """One client of google-genai, made by the first text and shared by threads."""

    def __init__(self, access: Access, model: str) -> None:
        self._access = access
        self._model = model
        self._made: Client | None = None
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Import the SDK and make the client: a second of work, once. Raises EmbedderUnavailable."""
        self._client()

    def require_key(self) -> None:
        """Raise EmbedderUnavailable unless there is a key, or a project of Vertex AI."""
        if not self._access.api_key and not self._access.project:
            raise EmbedderUnavailable(
                f"there is no API key for {self._model}: set GEMINI_API_KEY (get one at {KEYS_PAGE}), or use the "
                "embedder local, which needs none"
            )

    def embed(
        self, texts: Sequence[str], *, task: str | None, title: str | None, dimensions: int, timeout_seconds: float
    ) -> Reply:
        """See `service.Service`."""
        client = self._client()
        from google.genai import types

        contents: list[Any] = [types.Content(role="user", parts=[types.Part(text=text)]) for text in texts]
        config = types.EmbedContentConfig(
            task_type=task,
            title=title,
            output_dimensionality=dimensions,
            http_options=types.HttpOptions(timeout=int(timeout_seconds * 1000)),
        )
        try:
            response = client.models.embed_content(model=self._model, contents=contents, config=config)
        except Exception as error:  # noqa: BLE001 - whatever it is becomes one of ours; its text may hold secrets
            raise self._mapped(error) from None
        usage = response.usage_metadata
        return Reply(
            vectors=[embedding.values for embedding in response.embeddings or ()],
            tokens=usage.prompt_token_count if usage and (usage.prompt_token_count or 0) > 0 else None,
        )

    def check(self) -> None:
        """Ask for the model's description, which is free. Raises EmbedderError, Transient."""
        client = self._client()
        from google.genai import types

        options = types.HttpOptions(timeout=int(CHECK_SECONDS * 1000))
        try:
            client.models.get(model=self._model, config=types.GetModelConfig(http_options=options))
        except Exception as error:  # noqa: BLE001 - as above
            raise self._mapped(error) from None

    def _client(self) -> Client:
        self.require_key()
        with self._lock:
            if self._made is None:
                self._made = self._make()
                atexit.register(self._made.close)
            return self._made

    def _make(self) -> Client:
        try:
            import httpx2
            from google import genai
            from google.genai import types
        except ImportError as error:
            raise EmbedderUnavailable(f"gemini needs {error.name}: pip install 'google-genai>=3.4,<4'") from error
        except Exception as error:
            raise EmbedderUnavailable(
                f"google-genai cannot be imported ({type(error).__name__}): pip install --force-reinstall google-genai"
            ) from error
        access = self._access
        # An object of httpx2 among the arguments makes the SDK take that client whatever the environment says; a
        # redirect would carry the key elsewhere.
        arguments = {
            "timeout": httpx2.Timeout(60.0),
            "follow_redirects": False,
            "event_hooks": {"response": [_bound]},
        }
        options = types.HttpOptions(
            base_url=access.base_url if access.project else access.base_url or BASE_URL,
            api_version="v1beta1" if access.project else "v1beta",
            client_args=arguments,
        )
        try:
            if access.project:
                return genai.Client(
                    vertexai=True, project=access.project, location=access.location or "global", http_options=options
                )
            return genai.Client(vertexai=False, api_key=access.api_key, http_options=options)
        except Exception as error:  # noqa: BLE001 - as above
            raise self._mapped(error) from None

    def _mapped(self, error: Exception) -> Exception:
        import httpx2
        from google.auth import exceptions as auth
        from google.genai import errors
        from pydantic import ValidationError

        if isinstance(error, errors.APIError):
            return refusal(error.code, error.details, self._model, self._access)
        kind = type(error).__name__
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout | auth.TransportError):
            return Transient(f"no connection ({kind})")
        if isinstance(error, httpx2.TimeoutException):
            return Transient("no answer in time", may_be_billed=True)
        if isinstance(error, httpx2.TransportError | OSError):
            return Transient(f"the connection broke ({kind})", may_be_billed=True)
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | httpx2.DecodingError):
            return Transient("the answer is not JSON", may_be_billed=True)
        if isinstance(error, ValidationError):
            return InvalidVector(f"{self._model} answered something other than vectors")
        if isinstance(error, auth.GoogleAuthError):
            return EmbedderUnavailable(
                f"Google's application default credentials do not work ({kind}): gcloud auth application-default login"
            )
        # Perhaps after the answer had come: it is counted as one, and the run ends if it happens again and again.
        return InvalidVector(f"google-genai failed for {self._model} with {kind}")


def refusal(code: int, details: object, model: str, access: Access) -> Exception:
    """What an HTTP status and Google's error body mean (google.rpc.Status with QuotaFailure, RetryInfo, ErrorInfo)."""
    body = details.get("error", details) if isinstance(details, dict) else {}
    body = body if isinstance(body, dict) else {}
    infos = _mappings(body.get("details"))
    message, status = str(body.get("message") or ""), str(body.get("status") or "")
    reasons = {str(info.get("reason")) for info in infos}
    key = f"the API key from {access.key_source}" if access.key_source else "the credentials"
    if code == 429:
        return _quota(infos, message, model)
    if code in {401, 403} or reasons & {"API_KEY_INVALID", "API_KEY_EXPIRED"} or "API key not valid" in message:
        return EmbedderUnavailable(f"Google refuses {key} ({code} {status}): check it at {KEYS_PAGE}")
    if code == 404:
        return EmbedderUnavailable(f"Google has no model {model} for {key} (404): known here are {', '.join(MODELS)}")
    if code == 408 or code >= 500:
        return Transient(f"it answers {code} {status}".rstrip(), retry_after=_retry_after(infos))
    if 300 <= code < 400:
        return EmbedderUnavailable(f"base_url answers with a redirect ({code}), which is not followed: correct it")
    if status == "FAILED_PRECONDITION":
        return EmbedderUnavailable(f"Google does not serve {model} to {key}: {_plain(message, access)}")
    return EmbeddingFailed(f"{model} refuses the text ({code} {status}): {_plain(message, access)}")


def _quota(infos: Sequence[dict[str, Any]], message: str, model: str) -> Exception:
    violations = [violation for info in infos for violation in _mappings(info.get("violations"))]
    quotas = {str(v.get("quotaId")): str(v.get("quotaValue")) for v in violations}
    if "0" in quotas.values() or re.search(r"limit: 0\b", message):
        return QuotaReached(
            f"Google's quota for {model} is zero for this key: waiting does not help, another tier or model may"
        )
    if any("PerDay" in name for name in quotas):
        return QuotaReached(f"Google's quota for {model} is used up for today: go on after midnight Pacific time")
    texts = [int(value) for name, value in quotas.items() if value.isdecimal() and "Token" not in name]
    per_minute = min(texts, default=None)
    return Transient(
        "its quota a minute is used up", retry_after=_retry_after(infos), is_quota=True, texts_per_minute=per_minute
    )


def _mappings(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _retry_after(infos: Sequence[dict[str, Any]]) -> float | None:
    """Seconds of a RetryInfo, whose delay is spelled like "53s" or "1.2s"."""
    for info in infos:
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)s", str(info.get("retryDelay", ""))):
            return float(match[1])
    return None


def _plain(message: str, access: Access) -> str:
    """Google's words without what they quote, which may be of the text, and without the key if it should be there."""
    if access.api_key:
        message = message.replace(access.api_key, "…")
    return re.sub(r"(['\"`]).*?\1", "…", " ".join(message.split()), flags=re.DOTALL)[:200] or "no reason given"


def _bound(response: Any) -> None:
    """Hold the whole answer to the request's timeout, to which the HTTP client holds each piece, and to a size."""
    import httpx2

    stream, seconds = response.stream, response.request.extensions["timeout"]["read"] or 60.0
    until = time.monotonic() + seconds

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for piece in stream:
                size += len(piece)
                if time.monotonic() > until:
                    raise httpx2.ReadTimeout("the answer took too long", request=response.request)
                if size > ANSWER_BYTES:
                    raise httpx2.ReadError("the answer is too long", request=response.request)
                yield piece

        def close(self) -> None:
            stream.close()

    response.stream = Bounded()
