"""``posttrain merge``: an adapter and its base made one plain folder, and proof that nothing was lost."""

import os
import shutil
from pathlib import Path
from typing import Any

from ..chat_templates.errors import InputError, first_line
from ..data_tools.files import read_json
from ..evals.models import ADAPTER, load_model
from ..evals.parity import ParityReport, Sides, compare_sides, require_base
from ..evals.runs import is_run, locate, read_record, run_of
from .adapter_types import TYPES
from .errors import RunError
from .model import agree


def merge_to(source: str, output: Path, *, dtype: str = "auto") -> ParityReport:
    """Merges an adapter into its base and compares the new folder with the adapter on its base.

    The folder is written under another name and gets its own when it is whole.

    Args:
        source: A run folder, a checkpoint, or any folder of an adapter.
        output: The new folder: weights, configurations, tokenizer, template, and ``parity.json``.
        dtype: The type of the weights; ``auto`` is that of the base as it is stored.

    Returns:
        What the comparison found; the folder is there even if the two differ.

    Raises:
        InputError: There is no adapter, its base is quantised or lies in no folder, or the output exists.
        PosttrainError: The model cannot be loaded.
        RunError: The folder cannot be written.
    """
    folder, _, record = open_source(source, output)
    adapter = folder if (folder / ADAPTER).is_file() else folder / "adapter"
    if not (adapter / ADAPTER).is_file():
        raise InputError("there is no adapter here to merge", where=source, hint=f"expected {ADAPTER}")
    kind = str((read_json(adapter / ADAPTER) or {}).get("peft_type")).lower()
    if (known := TYPES.get(kind)) and known.apart:
        raise InputError(f"{kind} cannot be merged: {known.apart}", where=source, hint="it is used with its base")
    require_base(record, source, "the run's own folder holds the merged model")
    loaded = load_model(str(adapter), dtype=dtype)
    model: Any = loaded.model
    if getattr(model.config, "quantization_config", None) is not None:
        hint = f"base_model_name_or_path in {adapter / ADAPTER} is to name the base in 16 or 32 bits"
        raise InputError(
            "the adapter's base is quantised, and to merge into it would lose digits", where=source, hint=hint
        )
    merged = model.merge_and_unload()
    agree(merged, loaded.tokenizer)
    write_whole(merged, loaded.tokenizer, output)
    del loaded, model, merged
    return compare_sides(Sides(adapter, output, record, output), quick=True)


def open_source(source: str, output: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Returns the folder of a model to be written anew, that of its run, and the run's record, empty for none.

    Raises:
        InputError: There is no such model, or the output exists.
    """
    if output.exists() or output.is_symlink():
        raise InputError("exists already", where=str(output), hint="say -o with the name of a new folder")
    folder = locate(source)
    run_dir = run_of(folder)
    return folder, run_dir, read_record(run_dir) if is_run(run_dir) else {}


def write_whole(model: Any, tokenizer: Any, output: Path) -> None:
    """Saves a model with its tokenizer under a name beside the folder's, then renames it.

    Raises:
        RunError: The folder cannot be written.
    """
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(output)
    except OSError as error:
        raise RunError(f"cannot be written: {first_line(error)}", where=str(output)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
