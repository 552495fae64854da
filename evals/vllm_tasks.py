"""Tasks by vLLM, where it is installed: lm-eval's own class for it, with prompts and limits as for transformers.

Prompts are token ids made here, so that a template, its variables and what begins a sequence are as everywhere. The
figures are near those of transformers and not the same, for vLLM computes with kernels of its own: its name and version
are part of what identifies a score.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import first_line
from ..data_tools.generate import seed_of
from .errors import EvalError, SuiteError
from .models import ADAPTER, head_config
from .spec import SamplingSpec, SuiteSpec

if TYPE_CHECKING:
    from lm_eval.api.model import LM

_NEUTRAL = {"num_beams": 1, "no_repeat_ngram_size": 0}  # settings of transformers that vLLM does not know


def vllm_version() -> str:
    """Returns which vLLM is installed.

    Raises:
        SuiteError: None is.
    """
    try:
        return version("vllm")
    except PackageNotFoundError as error:
        hint = "pip install vllm, or drop `backend` from the suite"
        raise SuiteError("`backend: vllm`, and vLLM is not installed", hint=hint) from error


def refuse_adapter(folder: Path) -> None:
    """Refuses a checkpoint that vLLM would have to merge.

    Raises:
        EvalError: It is an adapter.
    """
    if (folder / ADAPTER).is_file():
        hint = f"merge it: posttrain export {folder} --to vllm -o FOLDER, and score FOLDER; or drop `backend`"
        raise EvalError("vLLM is given whole models, and this is an adapter", where=str(folder), hint=hint)


def wrap(folder: Path, tokenizer: Any, suite: SuiteSpec) -> "LM":
    """Loads a checkpoint into vLLM, and returns it as lm-eval's model.

    Args:
        folder: The checkpoint.
        tokenizer: Its tokenizer.
        suite: The suite.

    Raises:
        EvalError: It is an adapter or a classifier, or vLLM cannot load it.
    """
    refuse_adapter(folder)
    if head_config(folder) is not None:
        raise EvalError("this task needs a language model, and the checkpoint is a classifier", where=str(folder))
    from lm_eval.models import vllm_causallms

    from .harness_model import OwnPrompts

    base: Any = vllm_causallms.VLLM  # its registering decorator hides its type

    class Model(OwnPrompts, base):
        """lm-eval's vLLM with prompts of our own."""

        draws_itself = True

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            self.shared.record = _record()
            return super().loglikelihood(requests, disable_tqdm)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            self.shared.record = _record()
            return super().loglikelihood_rolling(requests, disable_tqdm)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            self.shared.record = _record()
            generate, ids = super().generate_until, [self.tok_encode(request.args[0]) for request in requests]
            seeded = _seeded(requests, ids, self.setting, suite.seed)
            return self.without_thoughts(seeded, lambda asked: generate(asked, disable_tqdm))

    make: Any = Model
    try:
        lm = make(tokenizer, suite, pretrained=str(folder), dtype=suite.dtype, seed=suite.seed)
    except (OSError, ValueError, RuntimeError) as error:
        raise EvalError(f"vLLM cannot load it: {first_line(error)}", where=str(folder)) from error
    lm.shared = SimpleNamespace(record=None)
    lm.longest = lm.max_length - 1  # vLLM generates a token behind whatever it reads
    return lm


def _record() -> dict[str, str]:
    return {"backend": "vllm", "version": vllm_version()}


def _seeded(
    requests: Sequence[Any], prompts: Sequence[list[int]], setting: SamplingSpec | None, seed: int
) -> list[Any]:
    """Returns requests in vLLM's terms; samples of one prompt are drawn by random numbers of their own."""
    seen: Counter[tuple[int, ...]] = Counter()
    found = []
    for request, prompt in zip(requests, prompts, strict=True):
        text, settings = request.args
        settings = {key: value for key, value in settings.items() if (key, value) not in _NEUTRAL.items()}
        if setting is not None and setting.temperature > 0:
            settings |= {"do_sample": True, "temperature": setting.temperature, "top_p": setting.top_p, "top_k": 0}
        settings["seed"] = seed_of(seed, str(seen[tuple(prompt)]), prompt)
        seen[tuple(prompt)] += 1
        found.append(replace(request, arguments=(text, settings)))
    return found
