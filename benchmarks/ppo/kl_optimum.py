"""Whether PPO finds the optimum of E[r] - beta KL where it is known exactly.

    OMP_NUM_THREADS=1 python benchmarks/ppo/kl_optimum.py [--seeds 0 1 2] [--budget 25600]

The reference gives every token the same probability, the reward is the share of one token in an answer, and EOS ends
answers; `toys.optimum` solves that exactly. The policy's own E[r] and KL are then computed exactly too, by following
its probabilities through every state that matters for one prompt, not by sampling: see `evaluate`.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
import toys

BETA = 0.05
BATCH = 64
SETTINGS: dict[str, Any] = {"learning_rate": 1e-3, "num_iterations": 4}


def evaluate(folder: Path, samples: int, seed: int) -> tuple[float, float]:
    """Estimates E[r] and KL of a saved policy on fresh answers; the KL of each token is exact, not sampled.

    At every state that an answer passes, the divergence from the uniform reference is summed over the whole vocabulary
    (Rao-Blackwellised, which leaves far less noise than log-ratios of the sampled tokens).
    """
    import math

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    target = tokenizer.convert_tokens_to_ids(toys.TARGET)
    prompts = torch.tensor([tokenizer.convert_tokens_to_ids([word]) for word in toys.WORDS])
    ids = prompts.repeat(samples // len(prompts) + 1, 1)[:samples]
    torch.manual_seed(seed)
    alive = torch.ones(samples, dtype=torch.bool)
    kl, hits = torch.zeros(samples), torch.zeros(samples)
    with torch.no_grad():
        for _ in range(toys.LENGTH):
            logprobs = model(ids).logits[:, -1].log_softmax(-1)
            kl += alive * ((logprobs.exp() * logprobs).sum(-1) + math.log(logprobs.shape[-1]))
            token = torch.multinomial(logprobs.exp(), 1)
            hits += alive * (token[:, 0] == target)
            alive &= token[:, 0] != tokenizer.eos_token_id
            ids = torch.cat([ids, token], dim=1)
    return float(hits.mean() / toys.LENGTH), float(kl.mean())


def run(seed: int, budget: int, beta: float, settings: dict[str, Any]) -> tuple[float, float]:
    """Trains PPO and returns E[r] and KL of the final policy."""
    from posttrain.recipes.load import load
    from posttrain.recipes.train import train

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        toys.build_model(folder / "model", seed, uniform=True)
        toys.write_prompts(folder / "prompts.jsonl", toys.build_tokenizer(folder / "model"))
        batch = settings.get("per_device_train_batch_size", BATCH)
        steps = budget // batch * settings.get("num_iterations", 1)
        recipe = {
            "stage": "ppo",
            "model": {"name_or_path": str(folder / "model")},
            "data": {"train": {"path": str(folder / "prompts.jsonl"), "format": "prompt"}},
            "rewards": [{"function": f"{Path(toys.__file__).absolute()}:share_of_target"}],
            "trainer": {
                "per_device_train_batch_size": BATCH,
                "max_completion_length": toys.LENGTH,
                "temperature": 1.0,
                "kl_coef": beta,
                "logging_steps": 10,
                "save_strategy": "no",
                "gradient_checkpointing": False,
                "use_cpu": True,
                "bf16": False,
                "seed": seed,
                "max_steps": steps,
                **settings,
            },
            "output_dir": str(folder / "run"),
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        train(load(folder / "recipe.yaml"))
        return evaluate(folder / "run", 20_000, seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=int, default=25_600, help="answers drawn in a run")
    options = parser.parse_args()
    best = toys.optimum(BETA, tokens=len(toys.WORDS) + 2)
    found = [run(seed, options.budget, BETA, SETTINGS) for seed in options.seeds]
    print("| | E[r] | KL, nats | E[r] - beta KL |\n|---|---|---|---|")
    print(f"| optimum, exact | {best.reward:.4f} | {best.kl:.3f} | {best.objective:.4f} |")
    for seed, (reward, kl) in zip(options.seeds, found, strict=True):
        print(f"| PPO, seed {seed} | {reward:.4f} | {kl:.3f} | {reward - BETA * kl:.4f} |")
    reward, kl = (statistics.fmean(values) for values in zip(*found, strict=True))
    objective = reward - BETA * kl
    print(f"| PPO, mean | {reward:.4f} | {kl:.3f} | {objective:.4f} |")
    off = [abs(a / b - 1) for a, b in ((reward, best.reward), (kl, best.kl), (objective, best.objective))]
    print(f"off by {off[0]:.1%} in reward, {off[1]:.1%} in KL, {off[2]:.1%} in the objective")
    return int(max(off) > 0.05)


if __name__ == "__main__":
    sys.exit(main())
