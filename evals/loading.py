"""Checkpoints loaded one after another: what the next has in common with the last is not loaded again.

A tokenizer is loaded once for all folders whose files of it are the same. A LoRA adapter is taken off and the next put
on while their base stays, or is copied into the last one's layers where their configurations are the same. Weights of
the very layout of the last checkpoint's are copied into its tensors. Each is done only where the result is the fresh
model's to the bit, and is checked; anything else is loaded anew.
"""

import gc
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..data_tools.files import read_object
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

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_Layout = dict[str, tuple[str, list[int]]]  # of each tensor of a file: its type and shape

# What an adapter's configuration may say, besides names and sizes, if its base stays as it is. An initialisation such
# as PiSSA's takes something from the base's own weights.
_HARMLESS = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, False, "gaussian")}
_CHANGES_BASE = ("modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters")
_CHANGES_BASE += ("alora_invocation_tokens",)  # what such a layer does to a token is up to the tokens before


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
        compared = self._held.compared if self._held and self._held.adapted is not None else {}
        return LoadedModel(model.eval(), tokenizer, template, compared)

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
        fits = held is not None and held.key == key and len(tokenizer) <= rows
        if held is not None and fits and held.take_adapter(folder):
            self._held = held
            return held.adapted
        if held is None or not fits or not held.strip():
            del held
            self.release()
            whole: Any = load_base(folder, tokenizer, self.dtype)
            grown = make_room(whole, tokenizer)
            whole = whole.to(pick_device(self.device)).eval()
            if key is None or place is None or grown:
                return apply_adapter(whole, folder).to(whole.device)
            held = _Held(whole, key, place)
        held.put_on(folder)
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

    Attributes:
        compared: What was found of the adapter's layers, as :attr:`~.models.LoadedModel.compared`.
    """

    def __init__(self, model: Any, key: str, folder: Path):
        self.model, self.key, self.folder = model, key, folder
        self.adapted: Any = None
        self.compared: dict[str, float] = {}
        self.is_direct = False  # whether its tensors are known to be those of its files
        self._marks = self._state()

    def put_on(self, folder: Path) -> None:
        """Puts an adapter on the model, which has none."""
        self.adapter, self.adapter_is_direct, self.compared = folder, False, {}
        # Taken now: the files may change while the model is in use.
        self._adapter_kind = content_hash(folder / ADAPTER), layout_of([folder / _ADAPTER_WEIGHTS])
        self.adapted = apply_adapter(self.model, folder).to(self.model.device)
        self._adapter_marks = self._adapter_state()

    def strip(self) -> bool:
        """Takes the adapter off; says whether the model is what it was before the adapter was put on."""
        if self.adapted is not None:
            if self._adapter_state() != self._adapter_marks:
                return False  # if it was merged, nobody could tell by the tensors' marks
            bare, self.adapted = self.adapted.unload(), None
            if bare is not self.model:
                return False
        return self._state() == self._marks

    def take_adapter(self, folder: Path) -> bool:
        """Copies another adapter's weights into the layers of the one that is on.

        That needs the same configuration but for the name of the base, and files of the same tensors. What the layers
        hold must be what the first one's file holds, and every tensor of the model the base's, untouched, or a layer's.

        Returns:
            Whether it could be done; if not, nothing is changed.
        """
        import torch
        from peft import get_peft_model_state_dict

        if self.adapted is None or not self._adapter_kind[1]:
            return False
        if self._adapter_kind != (content_hash(folder / ADAPTER), layout_of([folder / _ADAPTER_WEIGHTS])):
            return False
        state: dict[str, Any] = get_peft_model_state_dict(self.adapted, save_embedding_layers=False)
        places = {tensor.data_ptr() for tensor in state.values()}
        if state.keys() != self._adapter_kind[1].keys() or len(places) < len(state):
            return False
        if self._state(places) != self._marks or self._adapter_state() != self._adapter_marks:
            return False
        if not self.adapter_is_direct:
            self.adapter_is_direct = all(
                tensor.shape == state[name].shape and torch.equal(tensor.to(state[name]), state[name])
                for name, tensor in tensors_of([self.adapter / _ADAPTER_WEIGHTS])
            )
        if not self.adapter_is_direct:
            return False
        with torch.no_grad():
            for name, tensor in tensors_of([folder / _ADAPTER_WEIGHTS]):
                state[name].copy_(tensor)
        self.adapter = folder
        return True

    def take(self, folder: Path, key: str) -> bool:
        """Copies the weights of another checkpoint into the tensors; says whether it could, else changes nothing."""
        import torch

        if _config(folder) is None or _config(folder) != _config(self.folder):
            return False
        layout = layout_of(_files(folder))
        if not layout or layout != layout_of(_files(self.folder)):
            return False
        state = self.model.state_dict()
        places = {name: state[name].data_ptr() for name in layout if name in state}
        if len(set(places.values())) < len(layout) or {t.data_ptr() for t in state.values()} != set(places.values()):
            return False  # a tensor of another name, one in two places, or one that no file has
        if not self.is_direct:
            self.is_direct = base_hash(self.folder) == self.key and all(
                torch.equal(tensor.to(state[name]), state[name]) for name, tensor in tensors_of(_files(self.folder))
            )
        if not self.is_direct:
            return False
        with torch.no_grad():
            for name, tensor in tensors_of(_files(folder)):
                state[name].copy_(tensor)
        self.key, self.folder, self._marks = key, folder, self._state()
        return True

    def _state(self, but: Collection[int] = ()) -> Any:
        """Returns what changes with the configuration or with any tensor: its place, and how often it was written.

        Args:
            but: Places of tensors that do not count: those of an adapter that is on.
        """
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        marks = {
            name.replace(".base_layer.", "."): (id(t), t.data_ptr(), t._version, t.dtype, t.shape)
            for name, t in tensors
            if t.data_ptr() not in but
        }
        return marks, self.model.config.to_json_string(), str(getattr(self.model, "generation_config", None))

    def _adapter_state(self) -> Any:
        """Returns what decides what the adapter's layers do, besides their tensors."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = {name: layer for name, layer in self.adapted.named_modules() if isinstance(layer, BaseTunerLayer)}
        marks = {
            name: [id(layer), layer.disable_adapters, *layer.merged_adapters, *layer.active_adapters]
            + [str(getattr(layer, field, None)) for field in layer.other_param_names]
            for name, layer in layers.items()
        }
        return marks, str(getattr(self.adapted, "generation_config", None))


def _leaves_base(folder: Path, base: Base) -> bool:
    """Says whether an adapter only adds layers beside those of its base."""
    adapter = read_object(folder / ADAPTER)
    config = read_object(base.folder / "config.json") if base.folder else {}
    if not adapter or not config:
        return False
    if adapter.get("task_type") == "SEQ_CLS" or "quantization_config" in config:
        return False
    if any(adapter.get(name) for name in _CHANGES_BASE):
        return False
    return all(adapter.get(name, values[0]) in values for name, values in _HARMLESS.items())


def _config(folder: Path) -> Any:
    """Returns what tells the configurations of two folders apart; None of what is quantised or brings its own code."""
    config = read_object(folder / "config.json")
    if not config or "quantization_config" in config or any(folder.glob("*.py")):
        return None
    names = [name for name in ("config.json", "generation_config.json") if (folder / name).is_file()]
    return {name: content_hash(folder / name) for name in names}


def layout_of(files: Iterable[Path]) -> _Layout:
    """Returns what safetensors files hold, without reading the numbers; nothing of one that is not there."""
    from safetensors import safe_open

    found: _Layout = {}
    for path in filter(Path.is_file, files):
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a dict
                part = tensors.get_slice(name)
                found[name] = (part.get_dtype(), part.get_shape())
    return found


def tensors_of(files: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """Reads the tensors of safetensors files, one by one."""
    from safetensors import safe_open

    for path in files:
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a dict
                yield name, tensors.get_tensor(name)


def _files(folder: Path) -> list[Path]:
    """Returns the files from which transformers loads a folder's weights."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    names = read_object(folder / "model.safetensors.index.json").get("weight_map", {}).values()
    return [folder / name for name in sorted(set(names))]
