"""Checkpoints loaded one after another: what the next has in common with the last is not loaded again.

A tokenizer is loaded once for all folders whose files of it are the same. A LoRA adapter is taken off and the next put
on while their base stays, and weights of the very layout of the last checkpoint's are copied into its tensors. Either
is done only where the result is the fresh model's to the bit, and is checked; anything else is loaded anew.
"""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..data_tools.files import read_json
from .checkpoints import Base, base_hash, base_of, content_hash, tokenizer_hash
from .models import (
    ADAPTER,
    LoadedModel,
    apply_adapter,
    load_base,
    load_tokenizer,
    load_whole,
    make_room,
    pick_device,
    telling_where,
)

_Layout = dict[str, tuple[str, list[int]]]  # of each tensor of a file: its type and shape

# What an adapter's configuration may say, besides names and sizes, if its base stays as it is. An initialisation such
# as PiSSA's takes something from the base's own weights.
_HARMLESS = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, False, "gaussian")}
_CHANGES_BASE = ("modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters")


class Loader:
    """Loads one checkpoint after another, and holds the last one's model until it is released.

    A model that was given out is no longer what it was once the next is asked for.

    Args:
        device: Where models go; the first GPU if there is one.
        dtype: As for :func:`~.models.load_model`.
    """

    def __init__(self, device: str | None = None, dtype: str = "auto"):
        self.device, self.dtype = device, dtype
        self._held: _Held | None = None
        self._gave = False  # whether a model may be in memory
        self._tokenizer: tuple[str, Any, str | None] | None = None

    def tokenizer(self, source: str) -> tuple[Any, str | None]:
        """Returns a checkpoint's tokenizer and the fingerprint of its chat template, as ``load_tokenizer`` does."""
        folder = Path(source)
        key = tokenizer_hash(folder) if folder.is_dir() else source
        if self._tokenizer is None or self._tokenizer[0] != key:
            self._tokenizer = (key, *load_tokenizer(source))
        return self._tokenizer[1:]

    def load(self, source: str) -> LoadedModel:
        """Returns a checkpoint, as :func:`~.models.load_model` does.

        Raises:
            EvalError: It cannot be loaded.
        """
        tokenizer, template = self.tokenizer(source)
        with telling_where(source):
            if (Path(source) / ADAPTER).is_file():
                model = self._adapted(Path(source), tokenizer)
            else:
                model = self._whole(source)
        self._gave = True
        return LoadedModel(model.eval(), tokenizer, template)

    def release(self) -> None:
        """Lets go of the last model, and of the memory of an accelerator that it took."""
        self._held = None
        if not self._gave:
            return  # looking for what nobody holds takes half a second
        self._gave = False
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _adapted(self, folder: Path, tokenizer: Any) -> Any:
        """Returns an adapter on its base, which is held for the next if the adapter leaves it as it is."""
        base, held = base_of(folder), self._held
        place = base.folder if base and _leaves_base(folder, base) else None
        key = base_hash(place) if place else None
        self._held = None  # if this fails halfway, nobody takes what is left
        rows = held.model.get_input_embeddings().weight.shape[0] if held else 0
        if held is None or held.key != key or len(tokenizer) > rows or not held.strip():
            del held
            self.release()
            whole: Any = load_base(folder, tokenizer, self.dtype)
            grown = make_room(whole, tokenizer)
            whole = whole.to(pick_device(self.device)).eval()
            if key is None or place is None or grown:
                return apply_adapter(whole, folder).to(whole.device)
            held = _Held(whole, key, place)
        held.adapted = apply_adapter(held.model, folder).to(held.model.device)
        self._held = held
        return held.adapted

    def _whole(self, source: str) -> Any:
        """Returns a whole model, in the tensors of the last one if it is of its kind."""
        folder, held = Path(source), self._held
        key = base_hash(folder) if folder.is_dir() else None
        self._held = None
        if held is None or key is None or not held.strip() or not (held.key == key or held.take(folder, key)):
            del held
            self.release()
            device = pick_device(self.device)
            model: Any = load_whole(source, device=device, dtype=self.dtype)
            model = model.to(device).eval()
            if key is None:
                return model
            held = _Held(model, key, folder)
        self._held = held
        return held.model


class _Held:
    """A whole model in memory, with what proves that nobody has changed it.

    Args:
        model: The model, on its device.
        key: What tells it from other bases.
        folder: Where its weights are from.
    """

    def __init__(self, model: Any, key: str, folder: Path):
        self.model, self.key, self.folder = model, key, folder
        self.adapted: Any = None
        self.is_direct = False  # whether its tensors are known to be those of its files
        self._marks = self._state()

    def strip(self) -> bool:
        """Takes the adapter off; says whether the model is what it was before the adapter was put on."""
        if self.adapted is not None:
            bare, self.adapted = self.adapted.unload(), None
            if bare is not self.model:
                return False
        return self._state() == self._marks

    def take(self, folder: Path, key: str) -> bool:
        """Copies the weights of another checkpoint into the tensors; says whether it could, else changes nothing."""
        import torch

        if _config(folder) is None or _config(folder) != _config(self.folder):
            return False
        layout = _layout(folder)
        if not layout or layout != _layout(self.folder):
            return False
        state = self.model.state_dict()
        places = {name: state[name].data_ptr() for name in layout if name in state}
        if len(set(places.values())) < len(layout) or {t.data_ptr() for t in state.values()} != set(places.values()):
            return False  # a tensor of another name, one in two places, or one that no file has
        if not self.is_direct:
            self.is_direct = base_hash(self.folder) == self.key and all(
                torch.equal(tensor.to(state[name]), state[name]) for name, tensor in _tensors(self.folder)
            )
        if not self.is_direct:
            return False
        with torch.no_grad():
            for name, tensor in _tensors(folder):
                state[name].copy_(tensor)
        self.key, self.folder, self._marks = key, folder, self._state()
        return True

    def _state(self) -> Any:
        """Returns what changes with the configuration or with any tensor: its place, and how often it was written."""
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        marks = {name: (id(t), t.data_ptr(), t._version, t.dtype, t.shape) for name, t in tensors}
        return marks, self.model.config.to_json_string(), str(getattr(self.model, "generation_config", None))


def _leaves_base(folder: Path, base: Base) -> bool:
    """Says whether an adapter only adds layers beside those of its base."""
    adapter = read_json(folder / ADAPTER)
    config = read_json(base.folder / "config.json") if base.folder else None
    if not isinstance(adapter, dict) or not isinstance(config, dict):
        return False
    if adapter.get("task_type") == "SEQ_CLS" or "quantization_config" in config:
        return False
    if any(adapter.get(name) for name in _CHANGES_BASE):
        return False
    return all(adapter.get(name, values[0]) in values for name, values in _HARMLESS.items())


def _config(folder: Path) -> Any:
    """Returns what tells the configurations of two folders apart; None of what is quantised or brings its own code."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or "quantization_config" in config or any(folder.glob("*.py")):
        return None
    names = [name for name in ("config.json", "generation_config.json") if (folder / name).is_file()]
    return {name: content_hash(folder / name) for name in names}


def _layout(folder: Path) -> _Layout:
    """Returns what a folder's safetensors files hold, without reading the numbers."""
    from safetensors import safe_open

    found: _Layout = {}
    for path in _files(folder):
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a dict
                part = tensors.get_slice(name)
                found[name] = (part.get_dtype(), part.get_shape())
    return found


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Reads the tensors of a folder's safetensors files, one by one."""
    from safetensors import safe_open

    for path in _files(folder):
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a dict
                yield name, tensors.get_tensor(name)


def _files(folder: Path) -> list[Path]:
    """Returns the files from which transformers loads a folder's weights."""
    index = read_json(folder / "model.safetensors.index.json")
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    names = index.get("weight_map", {}).values() if isinstance(index, dict) else ()
    return [folder / name for name in sorted(set(names))]
