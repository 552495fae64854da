"""What a recipe costs over the bare TRL script that trains the same thing, and what packed rows gain.

    OMP_NUM_THREADS=1 python benchmarks/train_overhead.py [--rounds 5] [--case CASE] [--model FOLDER] [--rows N]

``unpacked`` is SFT on padded conversations with loss on the assistant's turns, where a recipe must not be slower:
tokens per second at least 0.98 times bare TRL's. ``packed`` is SFT on packed rows (bfd) with SDPA attention, where TRL
flattens a batch of B rows of L tokens into one of B x L, and posttrain keeps the rows: at least 3 times bare TRL's.
In both all logged losses must agree. ``start`` is the time from a process's start to the end of its first step, of
`posttrain train` and of the bare script, begun together on two cores so that a busy neighbour slows both alike, with
the data tokenised before: at most 1.1 times bare TRL's. Exit code 1 says that something is short of that.

In a round two processes of one thread train at the same time, yet never at the same moment: after each step a process
hands the turn to the other and sleeps, so a busy neighbour slows both alike. Who goes first alternates. Both are timed
by one callback at one place, the trainer's default callbacks, which come before all others; so a timed step is what
the other callbacks and the log do after the step before, collating, forward, backward and optimizer. Loading,
tokenising, saving and the first steps are not in it. Model and data are made here, from a seed. ``--model`` trains a
real one in its place, whose tokenizer must know chatml's marks, in fewer steps and by goals of their own (`REAL`),
and ``--rows`` takes another number of rows a step.
"""

# Pyright cannot follow the import hook that maps `posttrain.…` to the rooms.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SEED = 1
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
WORDS = (
    *("river", "stone", "amber", "lantern", "quiet", "harbour", "seven", "copper", "window", "garden", "letter"),
    *("morning", "silver", "bridge", "winter", "paper", "answer", "question", "small", "large", "carry", "follow"),
    *("remember", "open", "close", "north", "south", "before", "after", "because", "although", "never"),
)
# Verbatim fields of SFTConfig, given to both. A recipe sets the last four on a machine without an accelerator, or
# where no terminal is watching; bare TRL needs to be told.
TRAINER: dict[str, Any] = {
    "max_length": 256,
    "learning_rate": 5.0e-4,
    "gradient_checkpointing": False,
    "assistant_only_loss": True,
    "save_strategy": "no",
    "report_to": "none",
    "seed": SEED,
    "use_cpu": True,
    "bf16": False,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "logging_nan_inf_filter": False,
}


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        trainer: Fields of SFTConfig beside those above.
        steps: Steps that are timed.
        warmup: Steps before them, a multiple of ``logging_steps``.
        conversations: How many there are to train on.
        ratio: What the recipe's tokens per second over bare TRL's must be at least.
        tolerance: By how much a logged loss may differ.
        lora: Fields of a LoRA adapter, named alike in a recipe and in peft; None trains all weights.
    """

    trainer: dict[str, Any]
    steps: int
    warmup: int
    conversations: int
    ratio: float
    tolerance: float
    lora: dict[str, Any] | None = None


CASES = {
    # The same batches and the same operations: nothing may differ. Logging as often as SFTConfig does by default.
    "unpacked": Case({"per_device_train_batch_size": 8, "logging_steps": 10}, 50, 10, 480, 0.98, 0.0),
    # Sums in another order, in float32, through all the steps before.
    "packed": Case(
        {"per_device_train_batch_size": 16, "packing": True, "packing_strategy": "bfd", "logging_steps": 1},
        *(6, 2, 340, 3.0, 1e-4),
    ),
}

# For a real model. Packed rows gain as far as attention over the flattened row outweighs the matrices, and of
# SmolLM2-135M that is not so in a step of 2,048 tokens, which one thread takes half a minute for.
REAL = {
    "unpacked": Case({"per_device_train_batch_size": 2, "logging_steps": 2}, 8, 2, 20, 0.99, 0.0),
    "packed": Case(
        {**CASES["packed"].trainer, "per_device_train_batch_size": 8, "gradient_checkpointing": True},
        *(1, 0, 30, 4.0, 1e-4),
        {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    ),
}


def find_case(name: str, model: str, rows: int) -> Case:
    """Returns a case, of ``rows`` rows a step if that is not 0."""
    case = (REAL if model else CASES)[name]
    if not rows:
        return case
    conversations = case.conversations * rows // case.trainer["per_device_train_batch_size"]
    return replace(case, trainer=case.trainer | {"per_device_train_batch_size": rows}, conversations=conversations)


FIRST_STEP = 1.1  # how much longer than the bare script a recipe may take to its first step


class Turns:
    """Times steps, and passes the turn to the other process after each.

    Args:
        read: File descriptor on which the turn comes.
        write: File descriptor on which it goes.
        first: Whether this process takes the first step.
    """

    def __init__(self, read: int, write: int, *, first: bool):
        self.read, self.write, self.first = read, write, first
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.losses: list[float] = []
        self.tokens: list[int] = []
        self._start = (0.0, 0.0)

    def begin(self) -> None:
        """Waits until both processes are ready and it is this one's turn."""
        if not self.first:
            os.write(self.write, b".")
        self._wait()
        self._start = time.perf_counter(), time.process_time()

    def end_step(self, *, last: bool) -> None:
        """Ends one step's time, and starts the next one's when the turn is back."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.wall.append(wall - self._start[0])
        self.cpu.append(cpu - self._start[1])
        os.write(self.write, b".")
        if self.first or not last:  # the first waits for the second's last step, not to save while it runs
            self._wait()
        self._start = time.perf_counter(), time.process_time()

    def _wait(self) -> None:
        if not os.read(self.read, 1):
            raise RuntimeError("the other process has ended")

    def install(self) -> None:
        """Adds itself to the callbacks of every trainer of this process, before those that the trainer is given."""
        import transformers.trainer
        from transformers import TrainerCallback

        turns = self

        class Clock(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                turns.begin()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                turns.end_step(last=state.global_step >= state.max_steps)

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
                if "loss" in logs:
                    turns.losses.append(logs["loss"])
                    turns.tokens.append(int(logs["num_tokens"]))

        transformers.trainer.DEFAULT_CALLBACKS.append(Clock)  # type: ignore[arg-type]


def conversation(rng: random.Random) -> dict[str, Any]:
    """Makes one to three exchanges of random words, of 30 to 250 tokens in all."""

    def say(least: int, most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))

    messages = []
    for _ in range(rng.randint(1, 3)):
        messages += [{"role": "user", "content": say(5, 20)}, {"role": "assistant", "content": say(5, 40)}]
    return {"messages": messages}


def make_model(folder: Path, texts: list[str]) -> None:
    """Writes a Llama of 1.9 M parameters with random weights, and its tokenizer with the chatml template."""
    import torch
    from posttrain import chat_templates
    from posttrain.data_tools.tokenizer import Tokenizer
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    rows = folder.with_suffix(".texts.jsonl")
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    Tokenizer(sources=[str(rows)], vocab_size=512).run(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat_templates.install(chat_templates.load("chatml"), tokenizer)
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def use_model(folder: Path, model: Path) -> None:
    """Gives a real model's tokenizer the chatml template whose loss masks both sides read, and links its weights."""
    from posttrain import chat_templates
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    chat_templates.install(chat_templates.load("chatml"), tokenizer)
    tokenizer.save_pretrained(folder)
    for file in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / file).symlink_to((model / file).resolve())


def set_up(name: str, folder: Path, model: str = "", rows_a_step: int = 0) -> None:
    """Writes the recipe of a case, its model and data, and the rows for bare TRL in the order the recipe has them.

    A recipe shuffles its documents by `data.seed`; the losses can only be compared if both see the same batches. For
    ``unpacked`` bare TRL gets the conversations in the recipe's order, to tokenise and mask itself; for ``packed`` it
    gets the recipe's packed rows, since its own packing would put other documents together.
    """
    case = find_case(name, model, rows_a_step)
    rng = random.Random(SEED)
    rows = [conversation(rng) for _ in range(case.conversations)]
    if model:
        use_model(folder / "model", Path(model))
    else:
        make_model(folder / "model", [message["content"] for row in rows for message in row["messages"]])
    (folder / "conversations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "stage": "sft",
        "model": {
            "name_or_path": str(folder / "model"),
            "dtype": "float32",
            "attn_implementation": "sdpa",
            "chat_template": "chatml",
        },
        "data": {"train": {"path": str(folder / "conversations.jsonl"), "format": "messages"}},
        "trainer": {**TRAINER, **case.trainer, "max_steps": case.warmup + case.steps},
        "output_dir": str(folder / "run"),
    }
    if case.lora:
        recipe["adapter"] = {"type": "lora", **case.lora}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))

    from posttrain.recipes.job import open_job
    from posttrain.recipes.load import load
    from posttrain.recipes.rows import prepare_rows

    job = open_job(load(folder / "recipe.yaml"))
    prepared = prepare_rows(job, "train")
    assert prepared is not None
    if case.trainer.get("packing"):
        prepared.dataset.save_to_disk(str(folder / "rows"))
        return
    tokenizer: Any = job.tokenizer
    by_text = {tokenizer.apply_chat_template(row["messages"], tokenize=False): row for row in rows}
    ordered = [by_text[tokenizer.decode(ids)] for ids in prepared.dataset["input_ids"]]
    (folder / "ordered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ordered))


def train_recipe(folder: Path, run_dir: Path) -> None:
    """Trains the recipe as the command line does."""
    from posttrain.recipes.train import main as train

    code = train([str(folder / "recipe.yaml"), f"output_dir={run_dir}"])
    if code:
        raise SystemExit(code)


def train_bare(folder: Path, run_dir: Path) -> None:
    """Trains the same by TRL alone."""
    import torch
    from datasets import load_dataset, load_from_disk
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    recipe = json.loads((folder / "recipe.yaml").read_text())
    settings, adapter = recipe["trainer"], recipe.get("adapter")
    if settings.get("packing"):
        data: Any = load_from_disk(str(folder / "rows"))
        settings |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "assistant_only_loss": False}  # rows have labels
    else:
        data = load_dataset("json", data_files=str(folder / "ordered.jsonl"), split="train")
    set_seed(SEED)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="sdpa"),
        args=SFTConfig(**settings, output_dir=str(run_dir)),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        peft_config=None if adapter is None else LoraConfig(**{key: adapter[key] for key in adapter if key != "type"}),
    )
    trainer.train()


def work(side: str, folder: Path, run_dir: Path, turns: Turns) -> None:
    """Is one of the two processes of a round."""
    import torch

    torch.set_num_threads(1)
    turns.install()
    {"recipe": train_recipe, "bare": train_bare}[side](folder, run_dir)
    result = {"wall": turns.wall, "cpu": turns.cpu, "losses": turns.losses, "tokens": turns.tokens}
    run_dir.with_suffix(".json").write_text(json.dumps(result))


def run_round(folder: Path, number: int) -> dict[str, dict[str, list[float]]]:
    """Runs both sides of a case in turns, and returns what each measured, per step."""
    order = ["recipe", "bare"] if number % 2 else ["bare", "recipe"]
    pipes = {side: os.pipe() for side in order}  # read by that side
    processes: dict[str, subprocess.Popen[str]] = {}
    for side, other in (order, order[::-1]):
        ends = pipes[side][0], pipes[other][1]
        command = [sys.executable, __file__, "--work", side, str(folder), str(folder / f"{side}-{number}")]
        command += [*map(str, ends), str(int(side == order[0]))]
        with (folder / f"{side}-{number}.txt").open("w") as log:
            processes[side] = subprocess.Popen(command, pass_fds=ends, stdout=log, stderr=log, text=True)
    for pipe in pipes.values():
        os.close(pipe[0])
        os.close(pipe[1])  # a process that waits for one that has died then sees the end
    codes = {side: process.wait() for side, process in processes.items()}
    failed = [side for side, code in codes.items() if code]
    if failed:
        logs = "\n".join((folder / f"{side}-{number}.txt").read_text()[-3000:] for side in failed)
        raise SystemExit(f"{' and '.join(failed)} failed:\n{logs}")
    return {side: json.loads((folder / f"{side}-{number}.json").read_text()) for side in order}


def first_step(side: str, folder: Path, began: float) -> None:
    """Trains to the end of the first step, and prints the seconds since ``began`` and those of CPU time."""
    import transformers.trainer
    from posttrain.recipes import cli
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            print(f"\n{json.dumps([time.time() - began, time.process_time()])}", flush=True)
            os._exit(0)

    transformers.trainer.DEFAULT_CALLBACKS.append(Clock)  # type: ignore[arg-type]
    if side == "recipe":
        sys.argv = ["posttrain", "train", str(folder / "recipe.yaml"), f"output_dir={tempfile.mkdtemp(dir=folder)}"]
        cli.main()
    train_bare(folder, folder / "bare-start")


def run_start(folder: Path, rounds: int) -> bool:
    """Prints a row per round and the median of how long a run takes to its first step; says whether that holds."""
    subprocess.run(
        [sys.executable, __file__, "--set-up", "unpacked", str(folder)], check=True, stdout=subprocess.DEVNULL
    )
    print("\n### start: to the end of the first step\n")
    print("| round | recipe, s | bare TRL, s | ratio | recipe, CPU s | bare TRL, CPU s | ratio of CPU time |")
    print("|---|---|---|---|---|---|---|", flush=True)
    ratios, of_cpu = [], []
    for number in range(rounds + 1):  # the first, which fills caches, does not count
        started = {}
        for side in ("recipe", "bare") if number % 2 else ("bare", "recipe"):
            command = [sys.executable, __file__, "--first-step", side, str(folder), str(time.time())]
            started[side] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        seconds = {side: json.loads(process.communicate()[0].splitlines()[-1]) for side, process in started.items()}
        (wall, cpu), (bare_wall, bare_cpu) = seconds["recipe"], seconds["bare"]
        if number:
            ratios.append(wall / bare_wall)
            of_cpu.append(cpu / bare_cpu)
            row = f"| {number} | {wall:.1f} | {bare_wall:.1f} | {ratios[-1]:.3f} "
            print(f"{row}| {cpu:.2f} | {bare_cpu:.2f} | {of_cpu[-1]:.3f} |", flush=True)
    median, cpu = statistics.median(ratios), statistics.median(of_cpu)
    ok = median <= FIRST_STEP
    print(
        f"\nMedian ratio {median:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), of CPU time {cpu:.3f} "
        f"({min(of_cpu):.3f} to {max(of_cpu):.3f}); at most {FIRST_STEP} wanted: {'holds' if ok else 'DOES NOT HOLD'}."
    )
    return ok


def run_case(name: str, folder: Path, rounds: int, model: str = "", rows: int = 0) -> bool:
    """Prints a row per round and the median; says whether the case holds."""
    case = find_case(name, model, rows)
    command = [sys.executable, __file__, "--set-up", name, str(folder), "--model", model, "--rows", str(rows)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    settings = json.dumps(case.trainer | ({"lora": case.lora} if case.lora else {}))
    print(f"\n### {name}: {case.steps} steps after {case.warmup}, {settings}\n")
    print("| round | recipe, tokens/s | bare TRL, tokens/s | ratio | ratio of CPU time | largest loss difference |")
    print("|---|---|---|---|---|---|", flush=True)
    ratios, differences = [], []
    for number in range(1, rounds + 1):
        result = run_round(folder, number)
        recipe, bare = result["recipe"], result["bare"]
        # Bare TRL's count: of packed rows it holds no padding. It is of the same rows, or the losses would differ.
        tokens = bare["tokens"][-1]
        if case.warmup:
            tokens -= bare["tokens"][case.warmup // case.trainer["logging_steps"] - 1]
        wall, cpu = ({side: sum(result[side][key][case.warmup :]) for side in result} for key in ("wall", "cpu"))
        ratios.append(wall["bare"] / wall["recipe"])
        differences.append(max(abs(a - b) for a, b in zip(recipe["losses"], bare["losses"], strict=True)))
        speeds = f"{tokens / wall['recipe']:,.0f} | {tokens / wall['bare']:,.0f}"
        cpu_ratio = cpu["bare"] / cpu["recipe"]
        print(f"| {number} | {speeds} | {ratios[-1]:.3f} | {cpu_ratio:.3f} | {differences[-1]:.1e} |", flush=True)
    median, difference = statistics.median(ratios), max(differences)
    ok = median >= case.ratio and difference <= case.tolerance
    verdict = "holds" if ok else "DOES NOT HOLD"
    print(
        f"\nMedian ratio {median:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), at least {case.ratio} wanted; "
        f"losses differ by at most {difference:.1e}, {case.tolerance:.0e} allowed: {verdict}."
    )
    return ok


def describe_machine() -> str:
    """Names what the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    packages = ("torch", "transformers", "trl", "accelerate", "datasets")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    today = datetime.datetime.now(datetime.UTC).date()
    return f"{today}, {model}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed of a recipe against the bare TRL script.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=[*CASES, "start"], help="only this one")
    parser.add_argument("--model", default="", help="folder of a real model, for unpacked and packed")
    parser.add_argument("--rows", type=int, default=0, help="rows a step, for unpacked and packed; 0: the case's own")
    parser.add_argument("--set-up", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--work", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--first-step", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.set_up:
        set_up(options.set_up[0], Path(options.set_up[1]), options.model, options.rows)
        return 0
    if options.work:
        side, folder, run_dir, read, write, first = options.work
        work(side, Path(folder), Path(run_dir), Turns(int(read), int(write), first=first == "1"))
        return 0
    if options.first_step:
        side, folder, began = options.first_step
        first_step(side, Path(folder), float(began))
    print(describe_machine())
    holds = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in [options.case] if options.case else [*CASES, *([] if options.model else ["start"])]:
            folder = Path(scratch, name)
            (folder / "model").mkdir(parents=True)
            os.environ.update(ENVIRONMENT, HF_HOME=str(folder / "cache"))  # for the processes started from here
            holds.append(
                run_start(folder, options.rounds)
                if name == "start"
                else run_case(name, folder, options.rounds, options.model, options.rows)
            )
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
