"""Learning from preferences.

- ``reward``: a score for each answer, the chosen one's above the rejected one's (Bradley and Terry 1952). The loss is
  -log sigmoid(r(x, y_w) - r(x, y_l) - margin), the margin that of the row if it has one (Touvron et al. 2023,
  arXiv:2307.09288, equation 2), plus ``center_rewards_coefficient`` times the squared sum of both rewards (Eisenstein
  et al. 2023, arXiv:2312.09244).
- ``dpo``: direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) and TRL's other losses on pairs.
- ``kto``: answers, wanted or not, without pairs (Ethayarajh et al. 2024, arXiv:2402.01306).
- ``orpo``: the mean of -log P over all tokens of prompt and chosen answer, as the authors' code has it, plus ``beta``
  times -log sigmoid of the log odds ratio of chosen to rejected (Hong et al. 2024, arXiv:2403.07691, equations 5 to 7;
  ``beta`` is the paper's lambda). It needs no reference.
"""

from typing import TYPE_CHECKING, Any

from ...data_tools.prepare import Prepared
from ..job import Job
from ..model import Head, load_reference
from ..stage_table import STAGES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainingArguments


def head(job: Job, data: dict[str, Prepared | None]) -> Head:
    """Returns the head of a reward model: one number."""
    return Head(labels=("reward",), problem="regression")


def config(stage: str, values: dict[str, Any]) -> "TrainingArguments":
    """Builds the stage's configuration; the columns are kept, since the collators read all of them.

    Raises:
        ValueError: Two fields do not go together.
    """
    args = STAGES[stage].config_class()(**values, remove_unused_columns=False)
    if getattr(args, "use_weighting", False) and {"aot", "aot_unpaired"} & set(args.loss_type):
        raise ValueError("use_weighting weighs pairs, which the aot losses take apart; drop one of the two")
    if getattr(args, "label_smoothing", 0) and not {"robust", "exo_pair", "aot", "aot_unpaired"} & set(args.loss_type):
        raise ValueError(f"label_smoothing is not read by loss_type {', '.join(args.loss_type)}; say loss_type: robust")
    return args


def build(
    job: Job, args: Any, model: "PreTrainedModel", data: dict[str, Prepared | None], common: dict[str, Any]
) -> "Trainer":
    """Builds TRL's trainer of the stage over rows that are already tokenised.

    Raises:
        RecipeError: A reference is to move with the policy where it cannot.
    """
    pad = job.tokenizer.pad_token_id
    common["sources"] = job.source_names
    assert isinstance(pad, int), "opening a job makes sure of a pad token"
    if job.loaded.recipe.stage == "orpo":
        from ..trainers.orpo import ORPOCollator, PreparedORPOTrainer

        return PreparedORPOTrainer(**common, data_collator=ORPOCollator(pad_token_id=pad))
    from ..trainers import preference as trainers

    if job.loaded.recipe.stage == "reward":
        collator = trainers.PairCollator(pad, pad_to_multiple_of=args.pad_to_multiple_of)
        return trainers.PreparedRewardTrainer(**common, data_collator=collator)
    paired = job.loaded.recipe.stage == "dpo"
    recipe, cached = job.loaded.recipe, args.precompute_ref_log_probs
    if args.sync_ref_model:
        trainers.refuse_moving(job, "trainer.precompute_ref_log_probs" if cached else "")
    # The reference is the policy without its fresh adapter, or as it is before it is trained, or it is loaded.
    loads = recipe.loads_reference and not (cached and recipe.adapts is None)
    reference = load_reference(recipe, job.tokenizer, args.seed) if loads else None
    trainer_class = trainers.PreparedDPOTrainer if paired else trainers.PreparedKTOTrainer
    return trainers.keeping_reference(trainer_class, common | {"ref_model": reference}, moves=args.sync_ref_model)
