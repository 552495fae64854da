"""What a run tells its user: before anything heavy is imported what it is about to do, and what to do with it after."""

import os
import platform
import shlex
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..data_tools.errors import DataError
from ..data_tools.files import read_json
from ..data_tools.sources import is_hub, local_files
from ..data_tools.spec import SourceSpec
from ..evals import checkpoints
from .estimate import stored_parameters
from .load import Loaded
from .model import VARLEN
from .needs import count, loss_path
from .trainer_fields import checkpointing_field

_COUNTED = 2**28  # bytes of text that are read through for their lines; of more the size is told


def header(loaded: Loaded, processes: int) -> list[str]:
    """Describes a run by ``config.json`` and what is known of files without reading their rows.

    Args:
        loaded: The recipe.
        processes: How many train it.
    """
    recipe, option = loaded.recipe, loaded.option
    trained = "all weights"
    if spec := recipe.adapts:
        trained = f"adapters of rank {spec.options.get('r', 8)}" if spec.type == "lora" else f"{spec.type} adapters"
        trained += f" on {recipe.quantization}" if recipe.quantization else ""
    batch = option("per_device_train_batch_size") * option("gradient_accumulation_steps") * processes
    counts = [_rows(source, loaded.path.parent) for source in recipe.data.train]
    rows = sum(count for count in counts if isinstance(count, int)) if all(isinstance(n, int) for n in counts) else None
    steps, epochs = option("max_steps"), option("num_train_epochs")
    length = f"{steps:,}" if steps > 0 else f"{epochs:g} epoch{'s' * (epochs != 1)}"
    if steps <= 0 and rows and not (option("packing") or option("num_generations") or recipe.data.tokens):
        length += f", about {max(1, round(rows / batch * epochs)):,}"
    return [
        f"{recipe.stage}: {loaded.name}",
        f"  model   {_model(loaded)}; trains {trained}",
        *_sources(recipe.data.train, counts),
        f"  device  {_device(bool(option('use_cpu')))}, {processes} process{'es' if processes > 1 else ''}",
        f"  steps   {length}, of {batch} rows each",
        f"  folder  {recipe.output_dir}{_standing(Path(recipe.output_dir))}",
    ]


_LOSSES = {
    "head": "of the head's outputs",
    "masked": "of hidden tokens' logits",
    "chunked": "of logits in chunks",
    "full": "of all logits at once",
    "fused": "fused with the output layer, in tiles (TRL's)",
}


def kernels(loaded: Loaded, model: Any, args: Any) -> str:
    """Returns a line on what computes a model's layers and loss, and on what is installed and does not.

    Args:
        loaded: The recipe.
        model: Its model.
        args: The trainer's configuration.
    """
    attention = str(getattr(model.config, "_attn_implementation", None) or "of the model's own")
    if not attention.startswith(VARLEN):
        ways = {"flash_attn": "flash_attention_2", "kernels": "kernels-community/flash-attn2"}
        hints = [f"{package} is installed: {_ATTENTION}: {way}" for package, way in ways.items() if find_spec(package)]
        attention += f" ({'; '.join(hints)} would use it)" if hints else ""
    parts = [f"attention {attention}", f"loss {_LOSSES[loss_path(loaded)]}"]
    parts += ["layers by the Hub's kernels where it has some"] if loaded.recipe.model.use_kernels else []
    if args.use_liger_kernel:
        parts.append("liger's layers")
    elif find_spec("liger_kernel"):
        parts.append("no liger (it is installed: trainer.use_liger_kernel: true)")
    parts += ["torch.compile"] if args.torch_compile else []
    on, spec = loaded.checkpointing, loaded.recipe.adapts
    if checkpointing_field(loaded.recipe.trainer):
        why = "as the recipe says"
    elif spec is not None and spec.kind.cached:
        why = f"{spec.type}'s tokens stand in a cache, which is not recomputed"
    else:
        why = (
            "the default; trainer.gradient_checkpointing: false is faster, and takes more memory"
            if on
            else "the default"
        )
    return f"kernels: {', '.join(parts)}; activation checkpointing {'on' if on else 'off'} ({why})"


_ATTENTION = "model.attn_implementation"


def _model(loaded: Loaded) -> str:
    """Names the model, its kind and its size."""
    spec = loaded.recipe.model
    if spec.name_or_path is None:
        return f"a new {(spec.config or {}).get('model_type')}"
    folder = Path(spec.name_or_path)
    if not (folder / "config.json").is_file():
        return spec.name_or_path
    config = read_json(folder / "config.json")  # whatever is wrong with it is said where the model is opened
    kind = config.get("model_type", "model") if isinstance(config, dict) else "model"
    size = stored_parameters(folder)
    return f"{folder.name} ({kind}" + (f", {count(size)} parameters)" if size else ")")


def _rows(source: SourceSpec, base: Path) -> int | str | None:
    """Counts the rows of a source where that takes no time; else says its size; None where nothing can be known yet."""
    try:
        files = [] if is_hub(source, base) else local_files(source, base)
    except DataError:
        return None  # a pipeline's step has yet to write it, or preparing the data will say what is wrong
    size = sum(file.stat().st_size for file in files)
    if not files or (not all(file.suffix == ".jsonl" for file in files) or size > _COUNTED):
        return f"{size / 2**20:,.1f} MiB" if files else None
    rows = 0
    for file in files:
        with file.open("rb") as handle:
            rows += sum(block.count(b"\n") for block in iter(lambda: handle.read(2**20), b""))
    return min(rows, source.limit or rows)


def _sources(sources: Iterable[SourceSpec], counts: list[int | str | None]) -> list[str]:
    """Names each source with its rows or size."""
    lines = []
    for source, rows in zip(sources, counts, strict=True):
        size = f"{rows:,} rows" if isinstance(rows, int) else rows
        name = Path(source.title).name
        lines.append(f"  {'' if lines else 'data':8}{name}" + (f": {size}" if size else ""))
    return lines


def _device(cpu: bool) -> str:
    """Names the device, as far as the drivers' files tell it: torch would take seconds."""
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus and not cpu and visible != "":
        model = next((line for line in gpus[0].read_text().splitlines() if line.startswith("Model:")), "Model: GPU")
        count = len(visible.split(",")) if visible else len(gpus)
        return f"{count} x {model.partition(':')[2].strip()}"
    if not cpu and platform.system() == "Darwin" and platform.machine() == "arm64":
        return "Apple GPU"
    return f"CPU, {os.cpu_count()} cores"


def _standing(run_dir: Path) -> str:
    """Says from where a run that was begun before goes on."""
    newest = standing_checkpoint(run_dir)
    return f", which holds {newest.name}" if newest else ""


def standing_checkpoint(run_dir: Path) -> Path | None:
    """Returns the newest checkpoint that was saved to its end, from which a run can go on; its bytes are not read."""
    for folder in reversed(checkpoints.list_checkpoints(run_dir)):
        manifest = checkpoints.read_manifest(folder)
        if manifest is not None and manifest.resumable:
            return folder
    return None


def next_steps(loaded: Loaded) -> list[str]:
    """Lists commands for what one does with a model that has been trained."""
    folder = shlex.quote(loaded.recipe.output_dir)
    suite: Any = loaded.recipe.score and loaded.recipe.score.suite
    commands = [] if suite else [(f"score {folder} --suite NAME", "what it can do; suites: core, chat, …")]
    if not loaded.stage.headed and loaded.stage.family != "masked":
        commands += [(f"chat {folder}", "talk to it")]
        commands += [(f"export {folder} --to vllm -o DIR", "serve it; an adapter is merged already")]
    commands += [(f"watch {folder}", "its curves")]
    width = max(len(command) for command, _ in commands)
    return ["next:", *(f"  posttrain {command:{width}}  # {why}" for command, why in commands)]
