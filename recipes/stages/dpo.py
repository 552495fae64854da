"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) and TRL's other losses on pairs."""

from typing import TYPE_CHECKING, Any, Literal

from ...data_tools.prepare import Prepared
from ..errors import RecipeError
from ..job import Job
from . import STAGES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerCallback
    from trl.trainer.dpo_config import DPOConfig

    from ..preference_trainers import ReferenceKeeper

# TRL only meets a name that it does not know at the first step.
LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")


def prepare_rows(job: Job, split: Literal["train", "eval"]) -> Prepared | None:
    """Turns a split of the recipe's pairs into token ids; None if the recipe has no such split.

    Raises:
        DataError: The rows are not what the recipe says.
    """
    from ...data_tools.examples import prepare_examples
    from .. import job as jobs

    recipe = job.loaded.recipe
    if split == "eval" and recipe.data.eval is None:
        return None
    return prepare_examples(
        recipe.data,
        split,
        base_dir=job.loaded.path.parent,
        tokenizer=job.tokenizer,
        template=job.template,
        kind=STAGES[recipe.stage].accepts[0],
        accepts=STAGES[recipe.stage].accepts,
        max_length=job.option("max_length"),
        cache_dir=jobs.cache_dir(),
        num_proc=job.option("dataset_num_proc") or 1,
    )


def build(
    job: Job,
    args: "DPOConfig",
    model: "PreTrainedModel",
    data: dict[str, Prepared | None],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """Builds TRL's DPOTrainer over rows that are already tokenised.

    Raises:
        RecipeError: A reference that moves with the policy where there is none to move.
    """
    from ..model import lora_config
    from ..preference_trainers import PreparedDPOTrainer

    lora = job.loaded.recipe.lora
    train, held_out = data["train"], data["eval"]
    assert train is not None, "a recipe always has data.train"
    keeper = reference_keeper(job, args)
    trainer = PreparedDPOTrainer(
        model=model,
        ref_model=reference_model(job, args),
        args=args,
        train_dataset=train.dataset,
        eval_dataset=held_out.dataset if held_out else None,
        processing_class=job.tokenizer,
        peft_config=lora_config(lora, model, grown=bool(job.added)) if lora else None,
        callbacks=[*keeper, *callbacks],
    )
    for callback in keeper:
        callback.keep(trainer)
    return trainer


def reference_model(job: Job, args: Any) -> "PreTrainedModel | None":
    """Loads the model that the policy starts from once more, tokens that the template added included.

    Not where the policy without its adapter is the reference, nor where its log-probabilities are computed beforehand.
    TRL would load it by its name alone: without its revision, its added tokens or its choice of layers.
    """
    from transformers import set_seed

    from ..model import load_model

    if job.loaded.recipe.lora or args.precompute_ref_log_probs:
        return None
    set_seed(args.seed)  # new weights are drawn as the policy's were
    return load_model(job.loaded.recipe, job.tokenizer)


def reference_keeper(job: Job, args: Any) -> "list[ReferenceKeeper]":
    """Returns what keeps a reference that moves with the policy over a resume, if there is one.

    Raises:
        RecipeError: There is no reference that could move.
    """
    from ..preference_trainers import ReferenceKeeper

    if not args.sync_ref_model:
        return []
    problem = None
    if job.loaded.recipe.lora:
        problem = (
            "needs a reference of its own, but under lora it is the policy without its adapter; drop one of the two"
        )
    elif args.precompute_ref_log_probs:
        problem = (
            "moves the reference, so precompute_ref_log_probs would use one that is out of date; drop one of the two"
        )
    if problem:
        raise RecipeError(f"trainer.sync_ref_model {problem}", where=str(job.loaded.path))
    return [ReferenceKeeper()]


def config(values: dict[str, Any]) -> "DPOConfig":
    """Builds ``DPOConfig``.

    Raises:
        ValueError: There is no such loss or divergence, or the two do not go together.
    """
    from trl.trainer.dpo_config import DPOConfig

    args = DPOConfig(**values, remove_unused_columns=False)
    for name, given, known in (
        ("loss_type", args.loss_type, LOSSES),
        ("f_divergence_type", [args.f_divergence_type], DIVERGENCES),
    ):
        check_names(name, given, known)
    if args.use_weighting and {"aot", "aot_unpaired"} & set(args.loss_type):
        raise ValueError("use_weighting weighs pairs, which the aot losses take apart; drop one of the two")
    return args


def check_names(field: str, given: list[str], known: tuple[str, ...]) -> None:
    """Refuses names that TRL would stumble over at the first step.

    Raises:
        ValueError: One is unknown; says which was probably meant.
    """
    import difflib

    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            raise ValueError(
                f"{field} {name!r} is none of {', '.join(known)}{f'; did you mean {near[0]!r}?' if near else ''}"
            )
