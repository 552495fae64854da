"""Checkpoints as models in memory: whole models, and adapters with the base they were trained on."""

import contextlib
import functools
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..chat_templates.errors import InputError, PosttrainError, first_line
from ..data_tools.errors import HubError, is_silence, listing
from ..data_tools.files import garbage_kept, read_json, write_json
from ..data_tools.generate import places, room
from .checkpoints import CHANGED_BASE, base_has_changed, base_of
from .errors import EvalError, SuiteError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from .spec import Chat

ADAPTER = "adapter_config.json"
HEAD = "head.json"
"""Beside the adapter of a classifier: the fields of the configuration that describe its head."""
_HEAD_FIELDS = ("num_labels", "id2label", "label2id", "problem_type", "classifier_pooling")
ModelKind = Literal["causal", "classifier", "masked"]
_KINDS: dict[str, ModelKind] = {"ForSequenceClassification": "classifier", "ForMaskedLM": "masked"}


@dataclass(frozen=True)
class Pretrained:
    """What is loaded by transformers, and how a failure to load it is told.

    Attributes:
        name: A folder or a Hub id.
        revision: The branch, tag or commit of a Hub repository.
        trust_remote_code: Whether Python code from the repository may run.
        what: What an error calls it.
        hint: What to look at then.
        error: The kind of error.
    """

    name: str
    revision: str | None = None
    trust_remote_code: bool = False
    what: str = "the model"
    hint: str | None = None
    error: type[PosttrainError] = EvalError

    def config(self, **changes: Any) -> "PretrainedConfig":
        """Reads the configuration, some of its fields given other values; a folder with only an adapter has none."""
        from transformers import AutoConfig

        folder = Path(self.name)
        if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
            hint = "use the run's final model, in which the adapter is merged, or merge it with peft"
            raise self.error(f"{self.name} holds an adapter, not a whole model", hint=hint)
        return self._load(AutoConfig, **changes)

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Loads the tokenizer."""
        from transformers import AutoTokenizer

        with garbage_kept():  # of what is read of a large vocabulary nothing is, and it is read three times
            return self._load(AutoTokenizer)

    def weights(
        self,
        *,
        kind: ModelKind | None = None,
        new_head: bool = False,
        dtype: str = "auto",
        attn: str | None = None,
        empty: bool = False,
        **options: Any,
    ) -> "PreTrainedModel":
        """Loads the model; what transformers would draw at random instead, because it is not there, is refused.

        Args:
            kind: Causal or masked language model, or classifier; by default what its configuration names.
            new_head: Whether a classifier's head may start at random.
            dtype: What the weights are held in; ``auto`` is as saved.
            attn: The attention implementation; by default what transformers chooses.
            empty: Whether to load all but the numbers: of a folder's files the headers, of a Hub repository the
                configuration.
            **options: Further arguments of ``from_pretrained``.
        """
        config = self.config()
        loader = auto_class(kind or kind_of(getattr(config, "architectures", None)))
        options |= {"attn_implementation": attn} if attn else {}
        if empty and (not Path(self.name).is_dir() or hasattr(config, "quantization_config")):
            return self._described(loader, config, options)
        options |= {"device_map": "meta"} if empty else {}
        with quiet_reports() if empty else contextlib.nullcontext():
            model, found = self._load(
                loader, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        self._refuse_gaps(found, f"{model.base_model_prefix}." if new_head else None)
        if hasattr(config, "quantization_config") and not hasattr(model.config, "quantization_config"):
            model._weight_conversions = None  # or transformers saves what it made whole under names of packed weights
        return model

    def _described(self, kind: Any, config: Any, options: dict[str, Any]) -> Any:
        """Builds what a configuration describes, without its weights; the options are fields of it, but for one."""
        import torch

        attn = {key: value for key, value in options.items() if key == "attn_implementation"}
        for name, value in options.items():
            if name not in attn:
                setattr(config, name, value)
        with torch.device("meta"):
            model = kind.from_config(config, trust_remote_code=self.trust_remote_code, **attn)
            model.tie_weights()
        return model

    def _refuse_gaps(self, found: dict[str, Any], body: str | None) -> None:
        """Refuses weights that are missing or of another size; only those of the body, if its prefix is given."""
        names = [*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])]
        gaps = sorted(name for name in names if body is None or (name.startswith(body) and ".pooler." not in name))
        if gaps:
            what = f"it lacks the weights {listing(gaps, 3)}, or has them in other sizes"
            raise self.error(f"cannot load {self.what} {self.name}: {what}", hint=self.hint)

    def _load(self, kind: Any, **options: Any) -> Any:
        code = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        try:
            with quiet_bars():
                return kind.from_pretrained(self.name, **code, **options)
        except Exception as error:  # damaged files fail in as many ways as there are readers
            if is_silence(error):
                raise HubError(f"cannot load {self.what} {self.name}") from error
            raise self.error(f"cannot load {self.what} {self.name}: {first_line(error)}", hint=self.hint) from error


def auto_class(kind: ModelKind) -> Any:
    """Returns the class that loads a kind of model."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

    classes = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}
    return classes.get(kind, AutoModelForSequenceClassification)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be scored.

    Attributes:
        model: In evaluation mode, on its device.
        tokenizer: The checkpoint's own.
        template_fingerprint: Of the tokenizer's chat template, or None if it has none.
        compared: How far shared contexts were found off plain passes on these very layers, in nats, by what was asked:
            what :class:`~.shared_context.Scorer` keeps. Adapters that are loaded into each other's layers share it.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    template_fingerprint: str | None
    compared: dict[str, float] = field(default_factory=dict)

    @property
    def is_masked(self) -> bool:
        """Says whether it is a masked language model, which neither writes text nor gives texts a likelihood."""
        return kind_of([type(self.model).__name__]) == "masked"

    @property
    def outputs(self) -> int | None:
        """Returns how many outputs a classifier's head has; None for a language model."""
        return None if self.model.can_generate() or self.is_masked else self.model.config.num_labels

    def needs_language_model(self, task: str) -> None:
        """Refuses a classifier where text is to be read or written.

        Raises:
            EvalError: The checkpoint has a head of classes, or is a masked language model.
        """
        self.refuse_masked(task)
        if self.outputs is not None:
            raise EvalError(
                "this task needs a language model, but the checkpoint is a classifier "
                f"({type(self.model).__name__}, {self.outputs} outputs)",
                where=task,
                hint="score classifiers with `classification`, reward models with `pairs`",
            )

    def refuse_masked(self, where: str) -> None:
        """Refuses a masked language model, where text is read from its beginning on.

        Raises:
            EvalError: The checkpoint is one.
        """
        if self.is_masked:
            raise EvalError(
                f"this needs a causal language model, but the checkpoint is a masked one ({type(self.model).__name__})",
                where=where,
                hint="its `eval_loss` is in the run's log; the stage `classify` trains it for a task",
            )

    def needs_reward_model(self, where: str, hint: str) -> None:
        """Refuses a checkpoint that gives no reward.

        Raises:
            EvalError: It is no sequence classifier with one output.
        """
        if self.outputs == 1:
            return
        kind = f"this is not a sequence classifier but {type(self.model).__name__}, a language model"
        what = kind if self.outputs is None else f"the checkpoint's head has {self.outputs} outputs instead of one"
        raise EvalError(f"a reward model is needed, but {what}", where=where, hint=hint)


def applies_template(chat: "Chat", fingerprint: str | None) -> bool:
    """Says whether the chat template is to be applied, given its fingerprint (None if there is none).

    Raises:
        SuiteError: ``always`` on a tokenizer without a template.
    """
    if chat == "always" and fingerprint is None:
        raise SuiteError("`chat: always`, but the checkpoint's tokenizer has no chat template")
    return chat != "never" and fingerprint is not None


def load_tokenizer(source: str) -> tuple["PreTrainedTokenizerBase", str | None]:
    """Loads a checkpoint's tokenizer and the fingerprint of its chat template (None if it has none)."""
    from ..chat_templates.templates import fingerprint, from_tokenizer

    tokenizer = Pretrained(source, what="the tokenizer of").tokenizer()
    if getattr(tokenizer, "chat_template", None) is None:
        return tokenizer, None
    return tokenizer, fingerprint(from_tokenizer(tokenizer), tokenizer)


def template_of(folder: Path, load: "Callable[[str], tuple[Any, str | None]]" = load_tokenizer) -> str | None:
    """Returns the fingerprint of a checkpoint's chat template, or None; a folder without one is told at once."""
    config = folder / "tokenizer_config.json"
    inline = config.is_file() and "chat_template" in (read_json(config) or ["chat_template"])
    if not inline and not any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return None
    return load(str(folder))[1]


def load_model(source: str, *, device: str | None = None, dtype: str = "auto") -> LoadedModel:
    """Loads a checkpoint from a folder or by its Hub id.

    What its configuration calls a sequence classifier is loaded with its head, anything else as a language model. An
    adapter's base is loaded as its configuration names it (relative to the adapter's folder, else to the working
    directory) and is not quantised unless its own configuration says so.

    Args:
        source: The folder or Hub id.
        device: Where to put it; the first GPU if there is one, else the CPU. On ``meta`` no weights are read.
        dtype: ``auto`` keeps what the checkpoint says.

    Raises:
        EvalError: The model, its base or its tokenizer cannot be loaded.
    """
    tokenizer, template = load_tokenizer(source)
    device = pick_device(device)
    with telling_where(source):
        if (Path(source) / ADAPTER).is_file():
            base = load_base(Path(source), tokenizer, dtype)
            make_room(base, tokenizer)
            model: Any = apply_adapter(base, Path(source))
        else:
            model = load_whole(source, device=device, dtype=dtype)
    return LoadedModel(model.to(device).eval(), tokenizer, template)


def load_whole(source: str, *, device: str, dtype: str) -> "PreTrainedModel":
    """Loads what is no adapter, without its tokenizer; the arguments are those of :func:`load_model`."""
    return Pretrained(source).weights(dtype=dtype, empty=device == "meta")


def pick_device(named: str | None) -> str:
    """Returns the device that is named, else the first GPU if there is one, else the CPU."""
    import torch

    return named or ("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def telling_where(source: str) -> Iterator[None]:
    """Words what libraries raise while a model is loaded as an error of ours."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise EvalError(f"cannot load the model: {first_line(error)}", where=source) from error


def load_gguf(path: Path) -> LoadedModel:
    """Loads a GGUF file back into transformers, in float32, with the tokenizer and the template that it holds.

    Raises:
        EvalError: The package ``gguf`` is not installed, or the file cannot be read.
    """
    from transformers import AutoTokenizer

    from ..chat_templates.templates import fingerprint, from_tokenizer

    gguf_types(path)
    source = Pretrained(str(path.parent), what="the GGUF file in")
    tokenizer: Any = source._load(AutoTokenizer, gguf_file=path.name)
    model = source._load(auto_class("causal"), gguf_file=path.name, dtype="float32")
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # that of the file: what is loaded is whole
    template = fingerprint(from_tokenizer(tokenizer), tokenizer) if tokenizer.chat_template else None
    return LoadedModel(model.eval(), tokenizer, template)


def gguf_types(path: Path) -> set[str]:
    """Returns the types in which a GGUF file holds its tensors, such as ``F16``; raises as :func:`gguf_reader`."""
    return {tensor.tensor_type.name for tensor in gguf_reader(path).tensors}


def gguf_reader(path: Path) -> Any:
    """Opens a GGUF file by the package that defines the format.

    Raises:
        EvalError: The package ``gguf`` is not installed, or the file cannot be read.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise EvalError("a GGUF file needs the package gguf", hint="pip install 'posttrain[gguf]'") from error
    try:
        return GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
        raise EvalError(f"cannot read the GGUF file: {first_line(error)}", where=str(path)) from error


def load_language_model(source: str, dtype: str = "auto") -> LoadedModel:
    """Loads a checkpoint that is to read or write text onto the accelerator, if there is one.

    Raises:
        EvalError: It cannot be loaded, or is a classifier.
    """
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    loaded = load_model(source, device=device and str(device), dtype=dtype)
    loaded.needs_language_model(source)
    return loaded


def kind_of(architectures: Any) -> ModelKind:
    """Returns the kind of model that the architectures of a configuration name."""
    for name in architectures or ():
        for ending, kind in _KINDS.items():
            if str(name).endswith(ending):
                return kind
    return "causal"


def _json(path: Path) -> dict[str, Any]:
    """Reads a file of one object; without the file there is nothing in it."""
    try:
        value = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise EvalError(f"is not JSON: {error}", where=str(path)) from error
    if not isinstance(value, dict):
        raise EvalError("is not an object with fields", where=str(path), hint="the file is damaged: copy it anew")
    return value


def make_room(model: Any, tokenizer: Any) -> bool:
    """Adds embeddings to a model until every token of a tokenizer has one; says whether any was lacking."""
    weight = model.get_input_embeddings().weight
    if len(tokenizer) <= getattr(weight, "ds_shape", weight.shape)[0]:  # under ZeRO-3 the weight is an empty shard
        return False
    model.resize_token_embeddings(len(tokenizer), mean_resizing=weight.device.type != "meta")
    return True


def differing_tokens(one: Any, other: Any) -> list[str]:
    """Returns the tokens that two tokenizers do not share under the same id; padding, which is never read, aside."""
    ours, theirs = one.get_vocab(), other.get_vocab()
    pads = {one.pad_token, other.pad_token} - (ours.keys() & theirs.keys())
    return sorted(token for token in (ours.keys() | theirs.keys()) - pads if ours.get(token) != theirs.get(token))


def save_head(folder: Path, model: Any) -> None:
    """Writes what a classifier's adapter leaves out: how many outputs its head has, and what they mean.

    Does nothing in a folder that holds no such adapter.

    Args:
        folder: A checkpoint.
        model: What was saved there, or its configuration.
    """
    config = getattr(model, "config", model)
    if config is not None and _json(folder / ADAPTER).get("task_type") == "SEQ_CLS":
        fields = {name: getattr(config, name, None) for name in _HEAD_FIELDS}
        write_json(folder / HEAD, {name: value for name, value in fields.items() if value is not None})


def load_base(folder: Path, tokenizer: Any, dtype: str) -> Any:
    """Loads the base of an adapter; a classifier's head comes with the adapter, among its ``modules_to_save``.

    Args:
        folder: The adapter's.
        tokenizer: The adapter's, for which :func:`make_room` is to make room.
        dtype: As for :func:`load_model`.

    Raises:
        EvalError: There is no such base, or it cannot be loaded.
    """
    import torch

    base, headed = _base(folder)
    if base_has_changed(folder):
        print(f"warning: {folder}: {CHANGED_BASE}", file=sys.stderr)
    torch.manual_seed(0)  # rows for added tokens are drawn; the adapter brings its own if they were trained
    if not headed:
        return base.weights(dtype=dtype)
    model = base.weights(kind="classifier", dtype=dtype, new_head=True, **_head(folder))  # the adapter brings its own
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model


def apply_adapter(model: Any, folder: Path) -> Any:
    """Puts an adapter on its base, and returns peft's model; it has logits for the tokens that it is given alone."""
    from peft import PeftModel

    adapted: Any = PeftModel.from_pretrained(model, str(folder))
    _unwrap(adapted.get_base_model())
    if has_virtual_tokens(adapted) and model.can_generate():
        adapted.forward = functools.partial(_without_virtual, adapted.forward)
    return adapted


def under_adapter(model: Any) -> Any:
    """Returns the model that an adapter wraps, whose layers hold the adapter's; one without an adapter as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def has_virtual_tokens(model: Any) -> bool:
    """Says whether an adapter puts learned tokens before a text (prompt learning), on the way into peft's own model."""
    return any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())


def _without_virtual(forward: Callable[..., Any], input_ids: Any = None, **options: Any) -> Any:
    """Runs a model and leaves out what it says at places of virtual tokens, which are the first."""
    made = forward(input_ids=input_ids, **options)
    given = options["inputs_embeds"] if input_ids is None else input_ids
    made.logits = made.logits[:, -given.shape[1] :]
    if made.get("hidden_states") is not None:
        made.hidden_states = tuple(layer[:, -given.shape[1] :] for layer in made.hidden_states)
    return made


def _base(folder: Path) -> tuple[Pretrained, bool]:
    """Returns an adapter's base and whether the adapter brings a head."""
    adapter, base = _json(folder / ADAPTER), base_of(folder)
    hint = f"base_model_name_or_path in {folder / ADAPTER} is to name the folder or Hub id that it was trained on"
    if base is None or not base.name:
        raise EvalError("the adapter does not name its base model", where=str(folder), hint=hint)
    if base.folder is None and Path(base.name).is_absolute():
        raise EvalError(f"the adapter's base is gone: {base.name}", where=str(folder), hint=hint)
    found = Pretrained(base.name, revision=base.revision, what="the adapter's base", hint=hint)
    return found, adapter.get("task_type") == "SEQ_CLS"


def head_config(folder: Path) -> Any | None:
    """Returns the configuration of a checkpoint with a head of classes, without its weights; None of others.

    Raises:
        EvalError: It cannot be read.
    """
    base, headed = _base(folder) if (folder / ADAPTER).is_file() else (Pretrained(str(folder)), False)
    if headed:
        return base.config(**_head(folder))
    config = base.config()
    return config if kind_of(getattr(config, "architectures", None)) == "classifier" else None


def _unwrap(model: Any) -> None:
    """Puts what an adapter trained in full in the place of peft's wrappers around it.

    Whoever ties the embeddings of a model again, as lm-eval does, looks for their weights where the model has them.
    """
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):
            parent, _, child = name.rpartition(".")
            whole = module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
            setattr(model.get_submodule(parent), child, whole)
    output = model.get_output_embeddings() if model.can_generate() else None
    if output is not None and output.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr():
        model.config.get_text_config().tie_word_embeddings = False  # one of the two was trained by itself


def _head(folder: Path) -> dict[str, Any]:
    """Returns the configuration of an adapter's head; where nobody wrote it down, the number of outputs alone."""
    from safetensors import safe_open

    fields = _json(folder / HEAD) or _json(folder / "config.json")
    if fields:
        known = {name: fields[name] for name in _HEAD_FIELDS if name in fields}
        names = {int(number): name for number, name in (fields.get("id2label") or {}).items()}
        return known | ({"id2label": names, "num_labels": len(names)} if names else {})
    with safe_open(folder / "adapter_model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  # not a dict
            if re.search(r"\.(score|classifier)(\.out_proj|\.modules_to_save\.\w+)*\.weight$", name):
                return {"num_labels": tensors.get_slice(name).get_shape()[0]}
    raise EvalError(f"the adapter is a classifier's, but neither {HEAD} nor its weights hold a head", where=str(folder))


def model_length(model: Any) -> int:
    """Returns how many tokens a model was made for; 2,048 where its configuration does not say."""
    return room(model) or 2048


def check_length(model: Any, tokens: int, what: str, hint: str) -> str | None:
    """Refuses more tokens than a model has embeddings of places for.

    Args:
        model: The model.
        tokens: How many it is to read at once.
        what: What has so many.
        hint: What to do about it, with ``{most}`` for the tokens that the model was made for.

    Returns:
        The same as a warning, where places have no embeddings; None where the model was made for so many.

    Raises:
        InputError: There are more tokens than places.
    """
    most, learned = places(model)
    if most is None or tokens <= most:
        return None
    error = InputError(f"{what}, and the model was made for {most:,}", hint=hint.format(most=most))
    if learned:
        raise error
    return str(error)


@contextlib.contextmanager
def quiet_reports() -> Iterator[None]:
    """Silences transformers' report of the weights that a file lacks or has besides, where it is not news."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def quiet_bars() -> Iterator[None]:
    """Keeps the libraries' progress bars to terminals; in a log file they are thousands of lines."""
    from unittest import mock

    import tqdm
    from transformers.utils import logging

    if sys.stderr.isatty():
        yield
        return
    original = tqdm.tqdm.__init__

    def disabled(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **(kwargs | {"disable": True}))

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with mock.patch.object(tqdm.tqdm, "__init__", disabled):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def hub_access(offline: bool) -> Iterator[None]:
    """Closes the Hub for the length of a block; libraries that are already imported have read their setting."""
    import os
    from unittest import mock

    if not offline:
        yield
        return
    import datasets.config
    import huggingface_hub.constants

    closed = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with (
        mock.patch.dict(os.environ, closed),
        mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True),
        mock.patch.object(datasets.config, "HF_HUB_OFFLINE", True),
    ):
        yield
