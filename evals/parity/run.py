"""Compares two forms of a model of this machine, or one with a server, and keeps what came of it beside the run."""

import gc
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...chat_templates.errors import InputError
from ...data_tools.files import read_object
from ..checkpoints import base_of, list_checkpoints, weights_hash
from ..models import ADAPTER, LoadedModel, gguf_types, load_gguf, load_model
from ..records import now
from ..runs import is_run, locate, read_record, run_of
from .compare import TOLERANCES, FirstDifference, ParityCheck, compare_behaviour, compare_logs, compare_tokens
from .modelfile import compare_modelfile, read_modelfile
from .portrait import Material, Portrait, gather, portray, score
from .record import Form, ParityReport, hash_of, read_comparisons, write_comparison
from .stock import STOCK, STOCK_FORM, load_stock, portray_stock
from .weights import compare_weights, merge, stored, type_of

_LARGE = 8 << 30  # bytes of weights: twice that in float32 is more than many machines have
_PACKAGES = ("torch", "transformers", "peft", "tokenizers")


@dataclass(frozen=True)
class Sides:
    """What is compared with what.

    Attributes:
        one: The folder of the form that is taken to be right.
        other: The folder or GGUF file of the other.
        record: The run's record; empty for a plain model.
        store: The folder beside which the result is kept; None to keep none.
    """

    one: Path
    other: Path
    record: dict[str, Any]
    store: Path | None
    modelfile: Path | None = None
    """Ollama's, whose FROM is the other."""
    stock: bool = False
    """Whether the other is read by stock transformers alone, as a user does, and not by the suite."""


def find_sides(model: str, against: str | None) -> Sides:
    """Finds two forms of a model on this machine.

    Args:
        model: A run folder, a checkpoint, a model folder or a Hub id.
        against: Another folder, a Hub id, a GGUF file or a Modelfile; ``transformers`` for what that alone makes of the
            same folder; None for a run's adapter against the merged model.

    Raises:
        InputError: There is no such model, or nothing to compare it with.
    """
    folder, record, store = find_model(model)
    run_dir = run_of(folder)
    if against == STOCK:
        if not (folder / "config.json").is_file():
            raise InputError(
                "there is no whole model here",
                where=model,
                hint="merge the adapter, if it is of a type that merges: posttrain merge",
            )
        return Sides(_saved_before(folder) or folder, folder, record, store, stock=True)
    if against is not None:
        path = Path(against)
        if path.suffix == ".gguf":
            if not path.is_file():
                raise InputError("no such file", where=against)
            return Sides(folder, path, record, store)
        if path.is_file() and path.name.endswith("Modelfile"):
            return Sides(folder, read_modelfile(path).weights, record, store, path)
        files = sorted(path.glob("*.gguf")) if path.is_dir() and not (path / "config.json").is_file() else []
        return Sides(folder, files[0] if files else locate(against), record, store)
    adapter = folder if (folder / ADAPTER).is_file() else folder / "adapter"
    merged = run_dir if adapter == folder else folder
    if not (adapter / ADAPTER).is_file() or not (merged / "config.json").is_file():
        hint = "merge it if its type can be, or say --against FOLDER, a .gguf file or the URL of a server"
        raise InputError("there is no adapter with its merged model here to compare", where=model, hint=hint)
    require_base(record, model, "--against FOLDER compares the merged model with another")
    return Sides(adapter, merged, record, store)


def _saved_before(folder: Path) -> Path | None:
    """Returns the checkpoint of a run that holds its final weights: written apart, it says what to expect."""
    saved = [place for place in list_checkpoints(folder) if (place / "config.json").is_file()]
    return saved[-1] if saved and weights_hash(saved[-1]) == weights_hash(folder) else None


def find_model(model: str) -> tuple[Path, dict[str, Any], Path | None]:
    """Finds a model on this machine.

    Args:
        model: A run folder, a checkpoint, a model folder or a Hub id.

    Returns:
        Its folder, the record of its run, and the folder beside which results are kept: that of the run, if it is one.

    Raises:
        InputError: There is no such model.
    """
    folder = locate(model)
    run_dir = run_of(folder)
    record = read_record(run_dir) if is_run(run_dir) else {}
    return folder, record, run_dir if record else None


def require_base(record: Mapping[str, Any], where: str, hint: str) -> None:
    """Refuses the adapter of a run whose base lies in no folder.

    Raises:
        InputError: The run made the base itself: some layers of a model, or a new one.
    """
    made = (record.get("recipe") or {}).get("model")
    for key in ("layers", "config"):
        if isinstance(made, dict) and made.get(key):
            what = f"the base of the adapter is in no folder: the run made it by model.{key}"
            raise InputError(what, where=where, hint=hint)


def check_run(model: str, against: str | None = None) -> ParityReport:
    """Compares the forms of a run's model, and keeps the result beside the run.

    Raises:
        PosttrainError: A form cannot be found or loaded.
    """
    return compare_sides(find_sides(model, against))


def check_merge(run_dir: Path, live: LoadedModel | None) -> ParityReport:
    """Compares a run's adapter with the model that it was just merged into, on a few texts.

    Args:
        run_dir: The run folder.
        live: The trainer's own model, if it is whole in this process.

    Raises:
        PosttrainError: A form cannot be loaded.
    """
    return compare_sides(find_sides(str(run_dir), None), quick=True, live=live)


def stock_comparison(run_dir: Path) -> ParityReport | None:
    """Returns what came of comparing a run's model with what stock transformers makes of it; None if it has changed."""
    kept = (one for one in read_comparisons(run_dir) if one.other.name == STOCK_FORM and one.other.place == ".")
    return next((one for one in kept if not one.stale), None)


def compare_sides(sides: Sides, *, quick: bool = False, live: LoadedModel | None = None) -> ParityReport:
    """Compares two forms of a model on this machine, one after the other, in float32 unless they are large.

    Args:
        sides: The two.
        quick: Whether a few texts are enough.
        live: The model that a trainer holds, which is compared with the second form too.

    Raises:
        PosttrainError: A form cannot be loaded.
    """
    served = None if sides.modelfile is None else read_modelfile(sides.modelfile)
    one, other = (form_of(place, sides.store) for place in (sides.one, sides.modelfile or sides.other))
    if sides.stock:
        other = replace(other, name=STOCK_FORM)
    dtype, size = "float32", sum(path.stat().st_size for path in sides.other.glob("model*.safetensors"))
    notes = ()
    if size > _LARGE:
        dtype, notes = "auto", ("computed in the type of the weights, which are many to be held in float32",)
    first = load_model(str(sides.one), dtype=dtype)
    material = gather(first, sides.record, quick=quick)
    ours = portray(one.name, first, material)
    asked = [] if served is None else compare_modelfile(served, first.tokenizer, list(ours.stops.values()))
    weights = None
    if sides.other.is_dir() and hasattr(first.model, "merge_and_unload"):
        merged = merge(first.model, _rows_of_base(sides.one))
        weights = compare_weights(merged.weights, lambda: stored(sides.other), merged)
        del merged
    elif sides.other.is_dir():
        weights = compare_weights(dict(first.model.state_dict()), lambda: stored(sides.other))
    del first
    gc.collect()
    if sides.stock:
        second = load_stock(sides.other, dtype)
        theirs = portray_stock(other.name, second, material)
    else:
        second = load_model(str(sides.other), dtype=dtype) if sides.other.is_dir() else load_gguf(sides.other)
        theirs = portray(other.name, second, material)
    kind = type_of(sides.other) if sides.other.is_dir() else None
    if sides.other.suffix == ".gguf":
        weights, kind = _gguf_weights(sides, second)
        # transformers reads some vocabularies with a token of its own that the file lacks: no row of the model is its
        rows = second.model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
        kept = {number: text for number, text in theirs.added.items() if number < rows or number in ours.added}
        theirs = replace(theirs, added=kept)
    found = [*asked, *compare_tokens(ours, theirs), *([weights] if weights else [])]
    if sides.stock and (trained := (sides.record.get("template") or {}).get("fingerprint")):
        found[:0] = [_trained_template(trained, ours.template)]
    kind = "exact" if weights is not None and weights.status == "same" else kind or "float32"
    decode = lambda token: str(second.tokenizer.decode([token]))  # noqa: E731
    behaviour, parted = compare_behaviour(ours, theirs, kind, found, decode)
    checks = [*found, *behaviour]
    if live is not None:
        checks.append(_trainer(live, theirs, material, kind, decode))
    return keep(sides.store, one, other, checks, parted, kind, (*notes, *material.notes))


def keep(
    store: Path | None,
    one: Form,
    other: Form,
    checks: list[ParityCheck],
    first: FirstDifference | None,
    kind: str,
    notes: tuple[str, ...],
) -> ParityReport:
    """Makes a comparison of what was found, and writes it into a folder's record if there is one."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    made = ParityReport(one, other, tuple(checks), first, kind, notes, now(), versions)
    if store is not None:
        write_comparison(store, made)
    return made


def form_of(place: Path, store: Path | None) -> Form:
    """Names a form of a model that lies on this machine, by what lies there."""
    name = "GGUF read back" if place.suffix == ".gguf" else "Modelfile"
    if place.is_dir():
        merged = "merged model" if (place / "adapter" / ADAPTER).is_file() else "model"
        name = "adapter on its base" if (place / ADAPTER).is_file() else merged
    whole = place.absolute()
    inside = store is not None and whole.is_relative_to(store.absolute())
    return Form(name, str(whole.relative_to(store.absolute()) if inside and store else whole), hash_of(place))


def _rows_of_base(adapter: Path) -> int | None:
    """Returns how many tokens the configuration of an adapter's base names; None where it is not known."""
    base = base_of(adapter)
    return read_object(base.folder / "config.json").get("vocab_size") if base and base.folder else None


def _trained_template(trained: str, template: str | None) -> ParityCheck:
    """Compares a model's chat template with the one that its run records to have trained it."""
    name = "chat template of the training"
    if trained == template:
        return ParityCheck(name, "same", f"fingerprint {trained}")
    return ParityCheck(name, "differs", f"{trained} is {template or 'none'}", cause="another chat template")


def _gguf_weights(sides: Sides, second: LoadedModel) -> tuple[ParityCheck | None, str]:
    """Compares a GGUF file's weights with those of the folder that it was made of, and returns the file's type."""
    types = gguf_types(sides.other)
    coarse = sorted(types - {"F32", "F16", "BF16"})
    if coarse:
        return ParityCheck("weights", "not compared", f"quantised to {', '.join(coarse)}"), "quantized"
    own = type_of(sides.one)
    names = [name for name, short in (("bfloat16", "BF16"), ("float16", "F16")) if short in types]
    kind = names[0] if names else "float32"
    if (sides.one / ADAPTER).is_file() or own is None:
        return None, kind
    expected = dict(second.model.state_dict())
    return compare_weights(expected, lambda: stored(sides.one), rounded_to=None if kind == "float32" else kind), kind


def _trainer(live: LoadedModel, theirs: Portrait, material: Material, kind: str, decode: Any) -> ParityCheck:
    """Compares what the trainer's own model says with the second form."""
    import torch

    name = "the trainer's own log-probabilities"
    types = {weight.dtype for weight in live.model.parameters() if weight.is_floating_point()}
    coarse = next((str(kind).split(".")[-1] for kind in (torch.bfloat16, torch.float16) if kind in types), kind)
    quantized = getattr(live.model.config, "quantization_config", None) is not None
    training = live.model.training
    live.model.eval()
    try:
        scored = score(live, material.rows)
    finally:
        live.model.train(training)
    most, mean = TOLERANCES["quantized" if quantized else coarse]
    found, _ = compare_logs(scored, theirs.scored, most, mean, None, decode)
    assert found is not None, "both have scored the same rows"
    if quantized:
        detail = f"trained on quantised weights, merged into whole ones: {found.detail.partition(';')[0]}"
        return ParityCheck(name, "not compared", detail, found.largest)
    if found.status == "differs" and coarse != "float32" and coarse != "exact":
        detail = f"too coarse to tell, computed in {coarse}: {found.detail}"
        return ParityCheck(name, "not compared", detail, found.largest)
    return replace(found, name=name)
