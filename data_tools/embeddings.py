"""Texts to vectors: static embeddings in this process, or a server's."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..chat_templates.errors import PosttrainError
from .endpoint import EndpointSpec, Reply, Request
from .errors import DataError, HubError, is_silence

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

WORDLLAMA = "wordllama"
_MODEL_HINT = "name a folder or repository that model2vec saved, or `wordllama`"
Embed = Callable[[Sequence[str]], "Vectors"]


def static_embeddings(model: str) -> Embed:
    """Returns what embeds texts by a mean of static vectors, all of a text's tokens, in unit length.

    Args:
        model: A folder or repository of model2vec's, or ``wordllama`` for the vectors in that package's wheel.

    Raises:
        DataError: A package or the model is missing.
        HubError: The Hub cannot be reached.
    """
    try:
        from model2vec import StaticModel
    except ImportError as error:
        hint = "pip install 'posttrain[semantic]', or name an `endpoint`"
        raise DataError("static embeddings need the package 'model2vec'", where=model, hint=hint) from error
    if model.startswith((".", "/", "~")) and not Path(model).is_dir():
        raise DataError("there is no such folder", where=model, hint=_MODEL_HINT)
    try:
        # No text is cut: one that differs from another behind its 512th token is not the same.
        found: Any = _wordllama() if model == WORDLLAMA else StaticModel.from_pretrained(model, max_length=None)
    except (OSError, ValueError, KeyError) as error:
        if is_silence(error):
            raise HubError("cannot load the model", where=model) from error
        what = f"no static embeddings: {str(error).splitlines()[0]}"
        raise DataError(what, where=model, hint=_MODEL_HINT) from error

    def embed(texts: Sequence[str]) -> "Vectors":
        said = [text.encode(errors="replace").decode() for text in texts]
        return unit(np.asarray(found.encode(said, max_length=None, use_multiprocessing=False), np.float32))

    return embed


def _wordllama() -> Any:
    """Returns the vectors of wordllama's wheel (Miller 2024, github.com/dleemiller/WordLlama) as a model2vec model."""
    from model2vec import StaticModel
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    spec = importlib.util.find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise DataError("needs the package 'wordllama'", where="model", hint="pip install 'posttrain[semantic]'")
    folder = Path(spec.origin).parent
    vectors = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return StaticModel(vectors.astype(np.float32), tokenizer, max_length=None)


def server_embeddings(spec: EndpointSpec, record: Path) -> Embed:
    """Returns what asks a server's ``/embeddings`` for each text, once over the life of a record.

    Args:
        spec: The server and its model.
        record: What it was asked, and answered.
    """
    from .endpoint_client import Endpoint

    endpoint = Endpoint(spec, record)

    def embed(texts: Sequence[str]) -> "Vectors":
        replies: dict[str, Reply] = {}
        requests = [Request((), 0, prompt=text, protocol="embeddings") for text in texts]
        endpoint.ask(requests, lambda request, reply: replies.update({request.key(spec): reply}))
        vectors = []
        for request in requests:
            reply = replies[request.key(spec)]
            if reply.error is not None:
                what = f"gives no embedding: {reply.error}"
                raise PosttrainError(what, where=spec.address, hint="what it answered is kept; run it again")
            vectors.append(json.loads(reply.text))
        if len({len(vector) for vector in vectors}) > 1:
            raise PosttrainError("gives embeddings of different lengths", where=spec.address)
        return unit(np.array(vectors, np.float32).reshape(len(vectors), -1))

    return embed


def unit(vectors: "Vectors") -> "Vectors":
    """Returns vectors of length one; zeros stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
