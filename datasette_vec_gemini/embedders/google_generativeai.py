"""`google-generativeai[:MODEL[@DIMENSIONS]]`: the models of `gemini`, through Google's retired SDK of that name.

An index made with either serves both. Measured (0.8.6, its last): `configure` holds for the process, so each access has
a client of its own. Left alone the SDK follows a redirect with the key, repeats a 401 twice and a 503 for a minute,
times each piece of an answer but not the whole, and chokes on errors not shaped like Google's: its retries are off, and
a hook judges answers first. An answer takes three times the CPU of `gemini`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from ..access import Access
from ..errors import EmbedderError, EmbedderUnavailable, EmbeddingFailed, InvalidVector
from .gemini import ANSWER_BYTES, BASE_URL, GenaiService, embedder, refusal
from .remote import RemoteEmbedder
from .service import Reply, Transient

_log = logging.getLogger("datasette_vec_gemini")
_lock = threading.Lock()


def load(rest: str, access: Access) -> RemoteEmbedder:
    """From `""`, `":MODEL"`, `"@DIMENSIONS"` or both; the SDK is imported by the first text."""
    return embedder("google-generativeai", rest, access, LegacyService)


class LegacyService:
    """One client of the retired SDK, made by the first text and shared by threads."""

    def __init__(self, access: Access, model: str) -> None:
        self._access = access
        self._model = model
        self._made: Any = None

    def prepare(self) -> None:
        """Import the SDK and make the client: two seconds of work, once. Raises EmbedderUnavailable."""
        self.require_key()
        with _lock:
            self._made = self._made or self._make()

    def require_key(self) -> None:
        """Raise EmbedderUnavailable unless there is a key; this SDK does not know Vertex AI."""
        if self._access.project:
            raise EmbedderUnavailable("google-generativeai cannot ask Vertex AI: use the embedder gemini")
        GenaiService(self._access, self._model).require_key()

    def check(self) -> None:
        """Look for a key: this SDK's own call would be one more thing to guard."""
        self.require_key()

    def embed(
        self, texts: Sequence[str], *, task: str | None, title: str | None, dimensions: int, timeout_seconds: float
    ) -> Reply:
        """See `service.Service`."""
        if task == "CODE_RETRIEVAL_QUERY":
            raise EmbeddingFailed(f"google-generativeai does not know the task {task}: use the embedder gemini")
        self.prepare()
        options = {"timeout": timeout_seconds, "retry": None}
        try:
            answer = _sdk().embed_content(
                f"models/{self._model}", list(texts), task, title, dimensions, self._made, request_options=options
            )
        except Exception as error:  # noqa: BLE001 - whatever the SDK raises becomes one of ours; its text may hold secrets
            raise self._mapped(error) from None
        return Reply(vectors=answer["embedding"])

    def _make(self) -> Any:
        _sdk()
        from google.ai.generativelanguage import GenerativeServiceClient

        # An address of ours keeps GOOGLE_API_USE_MTLS_ENDPOINT from choosing one.
        options = {"api_key": self._access.api_key, "api_endpoint": (self._access.base_url or BASE_URL).rstrip("/")}
        try:
            client = GenerativeServiceClient(transport="rest", client_options=options)
            session = client.transport._session  # noqa: SLF001 - nothing else reaches it
            session.auth = lambda request: request  # else a password that ~/.netrc has for any host is sent along
            session.hooks["response"].append(self._judge)
        except Exception as error:  # noqa: BLE001 - as above
            raise self._mapped(error) from None
        return client

    def _judge(self, response: Any, *, timeout: float, **_: Any) -> None:
        _bound(response, timeout)
        if response.status_code >= 300:
            try:
                details = json.loads(response.content)
            except ValueError:
                details = {}
            raise refusal(response.status_code, details, self._model, self._access)

    def _mapped(self, error: Exception) -> Exception:
        from google.protobuf.json_format import ParseError
        from requests import exceptions as http
        from urllib3.exceptions import MaxRetryError

        kind = type(error).__name__
        if isinstance(error, Transient | EmbedderError):
            return error
        if isinstance(error, http.ReadTimeout):
            return Transient("no answer in time", may_be_billed=True)
        if isinstance(error, http.ConnectionError) and error.args and isinstance(error.args[0], MaxRetryError):
            return Transient(f"no connection ({kind})")
        if isinstance(error, http.ConnectionError | http.ChunkedEncodingError):
            return Transient(f"the connection broke ({kind})", may_be_billed=True)
        causes = error, error.__cause__
        if any(isinstance(e, json.JSONDecodeError | UnicodeDecodeError | http.ContentDecodingError) for e in causes):
            return Transient("the answer is not JSON", may_be_billed=True)
        if isinstance(error, ParseError):
            return InvalidVector(f"{self._model} answered something other than vectors")
        return EmbedderError(f"google-generativeai failed for {self._model} with {kind}")


@cache
def _sdk() -> Any:
    """The SDK, whose warning at import becomes a line in our log."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import google.generativeai
    except Exception as error:  # where another package has changed its protobuf, anything is raised
        fault = f"needs {error.name}" if isinstance(error, ImportError) else f"fails with {type(error).__name__}"
        remedy = "pip install 'datasette-vec-gemini[google-generativeai]', or use the embedder gemini"
        raise EmbedderUnavailable(f"google-generativeai {fault}: {remedy}") from error
    _log.warning("google-generativeai is past its end of life (2025-11-30): use the embedder gemini, the living one")
    return google.generativeai


def _bound(response: Any, seconds: float) -> None:
    """Hold the whole answer to the timeout and to a size: `read1` gives what has come, `stream` waits for more."""
    from requests.exceptions import ReadTimeout

    raw, until = response.raw, time.monotonic() + seconds - response.elapsed.total_seconds()

    def pieces(_: int, decode_content: bool | None = None) -> Iterator[bytes]:  # noqa: FBT001 - as urllib3 has it
        size = 0
        while piece := raw.read1(65_536, decode_content=decode_content):
            size += len(piece)
            if size > ANSWER_BYTES or time.monotonic() > until:
                raw.close()
                raise ReadTimeout
            yield piece

    raw.stream = pieces
