"""Muon by name: ``trainer.optim: muon``, which transformers does not have; every other name is transformers' own.

Muon moves a weight matrix by the nearest orthogonal matrix to its momentum (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon); what is no matrix of a hidden linear layer is moved by AdamW.
``torch.optim.Muon`` is the algorithm; here is decided which weights it moves, and the two are made one optimizer.
"""

import copy
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..chat_templates.errors import did_you_mean
from ..data_tools.progress import Say
from ..evals.models import kind_of
from .errors import RecipeError
from .model import head_modules

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "momentum": float,
    "nesterov": {"true": True, "false": False}.__getitem__,
    "ns_steps": int,
    "eps": float,
    "adjust_lr_fn": {name: name for name in ("match_rms_adamw", "original")}.__getitem__,
}


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon and AdamW as one optimizer, with one state, so that it is scheduled, saved and resumed as any other.

    A group says under ``algorithm`` which of the two moves it.

    Args:
        muon: Groups of matrices, with Muon's options.
        adamw: Groups of everything else, with AdamW's.
    """

    def __init__(self, muon: list[dict[str, Any]], adamw: list[dict[str, Any]]):
        self._algorithms = {"muon": torch.optim.Muon(muon), "adamw": torch.optim.AdamW(adamw)}
        groups = [
            {**group, "algorithm": name}
            for name, algorithm in self._algorithms.items()
            for group in algorithm.param_groups
        ]
        super().__init__(groups, {"lr": groups[0]["lr"]})  # which cosine_with_min_lr divides by

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves every weight once.

        Args:
            closure: Computes the loss anew, as for any optimizer of torch.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, algorithm in self._algorithms.items():
            # The groups and the state are others after a load, so neither algorithm keeps any of its own.
            algorithm.state = self.state
            algorithm.param_groups = [group for group in self.param_groups if group["algorithm"] == name]
            algorithm.step()
        return loss


def use_muon(trainer: "Trainer", say: Say) -> None:
    """Makes a trainer use Muon, with the options of ``trainer.optim_args``.

    Learning rate, schedule and weight decay are the trainer's for both algorithms: with ``match_rms_adamw``, the
    default of ``adjust_lr_fn`` here, a step of Muon is as large as one of AdamW (Liu et al. 2025, arXiv:2502.16982,
    section 2.2), so that rates that were found for AdamW can be kept. ``original`` is the scale of Jordan et al.

    Args:
        trainer: Any trainer whose optimizer is not made yet.
        say: Told how many tensors each algorithm moves.
    """
    args = trainer.args
    adam = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    options = {"muon": muon_options(args.optim_args), "adamw": adam}

    def create(model: nn.Module) -> MuonWithAdamW:
        if options["muon"]["adjust_lr_fn"] == "original" and any(isinstance(m, Conv1D) for m in model.modules()):
            what = (
                "trainer.optim_args: adjust_lr_fn=original scales by rows over columns, and this model's lie transposed"
            )
            raise RecipeError(what, hint="leave it out: match_rms_adamw scales by the longer side")
        matrices = {id(weight) for weight in hidden_matrices(model)}
        decayed = set(trainer.get_decay_parameter_names(model))  # a factory is given a model, and no groups
        chosen: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                algorithm = "muon" if id(weight) in matrices else "adamw"
                chosen.setdefault((algorithm, name in decayed), []).append(weight)
        groups: dict[str, list[dict[str, Any]]] = {"muon": [], "adamw": []}
        for (algorithm, decays), weights in chosen.items():
            decay = args.weight_decay if decays else 0.0
            common = {"params": weights, "lr": args.learning_rate, "weight_decay": decay}
            groups[algorithm].append({**common, **options[algorithm]})
        if not groups["muon"]:
            raise RecipeError(
                "trainer.optim: muon moves matrices of linear layers, and none is trained", hint="drop it"
            )
        say(f"optimizer: Muon moves {_counted(groups['muon'])}, AdamW {_counted(groups['adamw'])}")
        return MuonWithAdamW(**groups)

    trainer.optimizer_cls_and_kwargs = (lambda: create, {})  # type: ignore[assignment]


# What GaLore and APOLLO keep beside tensors in their state.
_PROJECTORS = {
    "galore": ("galore_torch.galore_projector:GaLoreProjector",),
    "apollo": ("apollo_torch.svd_projector:GaLoreProjector", "apollo_torch.random_projector:GradientProjector"),
}


def trust_projectors(optim: str) -> None:
    """Lets torch read the projections of gradients that GaLore and APOLLO keep: objects of plain values and tensors.

    It reads no other classes from a checkpoint, so a run that was killed could not go on.

    Args:
        optim: ``trainer.optim``.
    """
    places = [place.split(":") for name, own in _PROJECTORS.items() if name in optim for place in own]
    torch.serialization.add_safe_globals([getattr(importlib.import_module(module), name) for module, name in places])


def _counted(groups: list[dict[str, Any]]) -> str:
    weights = [weight for group in groups for weight in group["params"]]
    return f"{len(weights)} tensors ({sum(weight.numel() for weight in weights):,} parameters)"


def hidden_matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yields the weight matrices that Muon moves: those of linear layers, but heads, and what is tied to embeddings.

    Embeddings and heads are matrices too, but lists of vectors by what they do (Jordan et al. 2024). They are known by
    the module that holds them: names differ between architectures. Experts that are held in one tensor of three
    dimensions are left to AdamW.

    Args:
        model: A model, with or without adapters.
    """
    left_out = {id(weight) for part, _ in _vector_lists(model) for weight in part.parameters()}
    for module in model.modules():
        weight: Any = module.weight if isinstance(module, nn.Linear | Conv1D) else None
        # of one row, as a critic's head on the policy's states is, it would be a vector
        if weight is not None and id(weight) not in left_out and min(weight.shape) > 1:
            yield weight


def _vector_lists(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yields embeddings and heads, of all models inside a model: PPO's critic is one inside the policy."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield module, "embeddings"
        if isinstance(module, PreTrainedModel):
            if (output := module.get_output_embeddings()) is not None:
                yield output, "head"
            elif kind_of([type(module).__name__]) == "classifier":
                yield from ((getattr(module, name), "head") for name in head_modules(module))


def trained_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Groups the weights that are trained by what they are part of.

    ``embeddings`` (a tied head's among them), ``head`` and ``adapter``; of the layers ``norm`` and ``attention``, by
    their modules' classes, and ``mlp``, what other matrices they have; and ``other``.

    Args:
        model: A model, with or without adapters.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    seen: set[int] = set()

    def add(weights: Iterable[nn.Parameter], kind: str) -> None:
        for weight in weights:
            if weight.requires_grad and id(weight) not in seen:
                seen.add(id(weight))
                groups.setdefault(kind, []).append(weight)

    def walk(module: nn.Module, kind: str | None) -> None:
        name = type(module).__name__.lower()
        kind = "norm" if name.endswith("norm") else "attention" if "attention" in name else kind
        matrices = isinstance(module, nn.Linear | Conv1D) or "mlp" in name or "experts" in name
        add(module.parameters(recurse=False), kind or ("mlp" if matrices else "other"))
        for child in module.children():
            walk(child, kind)

    for module in model.modules():  # a layer that peft has put around another, or the virtual tokens before a text
        parts = dict(module.named_children())
        if "base_layer" in parts or hasattr(module, "adaption_prompt"):
            add(module.parameters(recurse=False), "adapter")
        for name, part in parts.items():
            if name == "prompt_encoder" or ("base_layer" in parts and name != "base_layer"):
                add(part.parameters(), "adapter")
    for part, kind in sorted(_vector_lists(model), key=lambda each: each[1]):
        add(part.parameters(), kind)
    walk(model, None)
    return groups


def check_options(args: "TrainingArguments") -> None:
    """Refuses an option in ``trainer.optim_args`` that the optimizer does not read: transformers passes over it.

    What gives the same optimizer with any value as without the option is not read; a value refused shows that it is.

    Raises:
        RecipeError: With the first of them.
    """
    from transformers import Trainer

    layer: Any = nn.Linear(1, 1)  # which GaLore and APOLLO want to see

    def made(options: str | None) -> Any:
        changed = copy.copy(args)
        changed.optim_args, changed.optim_target_modules = options, "all-linear"
        try:
            return Trainer.get_optimizer_cls_and_kwargs(changed, layer)
        except (ValueError, TypeError, AttributeError, ImportError, RuntimeError) as error:
            return str(error)

    bare = made(None)
    for pair in (args.optim_args or "").split(","):
        name, is_pair, _ = pair.strip().partition("=")
        if not is_pair:
            raise RecipeError(f"trainer.optim_args: '{pair}' is not of the form name=value")
        if not isinstance(bare, str) and bare == made(f"{name}=0.0123"):
            optim = str(getattr(args.optim, "value", args.optim))
            own = "adam" in optim and not optim.startswith(tuple(_PROJECTORS))
            hint = "AdamW's own are trainer.adam_beta1, adam_beta2 and adam_epsilon" if own else None
            raise RecipeError(f"trainer.optim_args: {optim} reads no option '{name}'", hint=hint)


def muon_options(text: str | None) -> dict[str, Any]:
    """Reads Muon's own options from ``trainer.optim_args``, such as ``momentum=0.9,ns_steps=6``.

    Raises:
        RecipeError: One is not Muon's, or has a value that it does not take.
    """
    options: dict[str, Any] = {"adjust_lr_fn": "match_rms_adamw"}
    for pair in filter(None, (text or "").replace(" ", "").split(",")):
        name, _, value = pair.partition("=")
        if name not in _OPTIONS:
            hint = did_you_mean(name, _OPTIONS) or f"it has {', '.join(_OPTIONS)}"
            raise RecipeError(f"trainer.optim_args: muon has no option '{name}'", hint=hint)
        try:
            options[name] = _OPTIONS[name](value.lower())
        except (ValueError, KeyError) as error:
            raise RecipeError(f"trainer.optim_args: muon's {name} cannot be '{value}'") from error
    return options
