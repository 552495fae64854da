"""TRL's reward, DPO and KTO trainers over rows that are already tokenised, with what they get wrong put right.

TRL tokenises anew whatever it is given, so each subclass takes its columns as they are. Two of TRL's losses depend on
how a step is cut into batches: DPO's ``sft`` term is a mean over the tokens of each small batch, and KTO estimates the
KL divergence from each small batch alone. Here both are those of the whole step, so that four batches of one row on one
process, or one row on each of four, train as one batch of four does. With TRL 1.16 the first six losses of a two-layer
model differed by up to 5% (KTO) and 0.02% (DPO with ``sft``) between batches of 4 and of 2 x 2 rows, here by 2e-7.

DPO's ``aot`` losses sort the rows of a batch, and so depend on its size by their definition.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_model, save_model
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer
from trl.trainer.utils import use_adapter

from ...data_tools.collate import ROW_SOURCES, RowSourceCollator
from ..errors import RecipeError
from ..job import Job
from .sources import BySource, losses_of_rows


class PairCollator(DataCollatorForPreference):
    """Joins prompt and answers as the reward model reads them; ``margin`` goes along where there is one."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns ``input_ids`` and ``attention_mask`` [2 B, L], the chosen rows first, and ``margin`` [B]."""
        joined = [
            {
                **row,
                "chosen_ids": list(row["prompt_ids"]) + list(row["chosen_ids"]),
                "rejected_ids": list(row["prompt_ids"]) + list(row["rejected_ids"]),
            }
            for row in examples
        ]
        return super().torch_call(joined)


class PreparedRows(BySource):
    """Takes rows as they are prepared, which say their sources; it stands before TRL's class among the bases.

    The loss of a source is the mean of its rows'.
    """

    sources_are_of = "rows"
    model: Any

    def __init__(self, *args: Any, **arguments: Any):
        super().__init__(*args, **arguments)
        self.data_collator = RowSourceCollator(self.data_collator)  # TRL's, which knows no such column

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes TRL's loss, and in training adds it up by source."""
        sources = inputs.pop(ROW_SOURCES)
        trainer: Any = super()
        if not self.model.training:
            return trainer.compute_loss(model, inputs, *args, **kwargs)
        if not self.sources.logged:
            self.sources.add(torch.zeros_like(sources), sources)  # counts them
            return trainer.compute_loss(model, inputs, *args, **kwargs)
        loss, rows = losses_of_rows(lambda: trainer.compute_loss(model, inputs, *args, **kwargs), len(sources))
        self.sources.add(rows, sources)
        return loss


class PreparedRewardTrainer(PreparedRows, RewardTrainer):
    """A RewardTrainer that takes prepared rows."""


class PreparedDPOTrainer(PreparedRows, DPOTrainer):
    """A DPOTrainer that takes prepared rows; the ``sft`` term is a mean over all chosen tokens of the step."""

    def __init__(self, *args: Any, **arguments: Any):
        super().__init__(*args, **arguments)
        if {"aot", "aot_unpaired"} & set(self.loss_types):  # whose losses are of sorted figures, of no row's own
            self.sources.logged = False

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Takes the batches of a step; adds each one's share of the step's chosen tokens where ``sft`` needs it."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        if "sft" in self.loss_types:
            masks = [batch["completion_mask"] for batch in batches]
            add_token_shares(self, batches, [mask.chunk(2)[0][:, 1:].sum() for mask in masks])
        return batches, items

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes TRL's loss; then gives the ``sft`` term the batch's share of tokens instead of an equal one."""
        share = inputs.pop(SHARE, None)
        if share is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        outputs: list[Any] = []
        sources = inputs[ROW_SOURCES]

        def keeping(**kwargs: Any) -> Any:
            outputs.append(model(**kwargs))
            return outputs[-1]

        loss: Any = super().compute_loss(keeping, inputs, *args, **kwargs)  # type: ignore[arg-type]
        mask = inputs["completion_mask"][:, 1:]
        logps = outputs[0].log_probs[:, -mask.size(1) :].chunk(2)[0]
        mask = mask.chunk(2)[0].bool()
        sft = -logps[mask].mean()
        weight = sum(w for name, w in zip(self.loss_types, self.loss_weights, strict=True) if name == "sft")
        if self.sources.logged:  # in place of the mean that TRL gives each row alike, what it has in the step's mean
            of_rows = -(logps.detach() * mask).sum(1) * len(sources) / mask.sum()
            self.sources.add(weight * (share * of_rows - sft.detach()), sources, counted=False)
        return loss + weight * (share - 1) * sft


SHARE = "token_share"


def add_token_shares(trainer: Trainer, batches: Sequence[dict[str, Any]], tokens: Sequence[torch.Tensor]) -> None:
    """Gives each batch of a step its tokens over the mean batch's, which turns means over batches into one over tokens.

    Args:
        trainer: The trainer, whose processes the step spans.
        batches: The batches of the step on this process.
        tokens: The tokens that carry loss in each of them.
    """
    if not batches:
        return
    counts = torch.stack(list(tokens)).to(trainer.accelerator.device, torch.float32)
    all_counts: Any = trainer.accelerator.gather(counts)
    for batch, share in zip(batches, counts / all_counts.mean(), strict=True):
        batch[SHARE] = share


class PreparedKTOTrainer(PreparedRows, KTOTrainer):
    """A KTOTrainer that takes prepared rows and estimates the KL divergence from all rows of a step.

    The mismatched answers of the estimate (Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1) are those of the
    step's rows, each moved on by one. Rows are shuffled once, since TRL then reads them in order.
    """

    def __init__(self, *, args: Any, **kwargs: Any):
        rows = args.per_device_train_batch_size
        self._rows_of_step = rows * args.gradient_accumulation_steps * args.world_size
        self._kl_logps: list[torch.Tensor] = []
        if self._rows_of_step > 1:  # TRL wants two rows a batch, since it pairs answers within each
            args.per_device_train_batch_size = max(rows, 2)
        super().__init__(args=args, **kwargs)
        args.per_device_train_batch_size = rows
        self._train_batch_size = args.train_batch_size

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        seed = args.seed if args.data_seed is None else args.data_seed
        dataset = dataset.shuffle(seed=seed, keep_in_memory=True)  # two answers to one prompt may follow each other
        if not self.calculate_KL:
            return dataset
        rows = self._rows_of_step if dataset_name == "train" else args.per_device_eval_batch_size
        with args.main_process_first(local=False):
            return dataset.map(
                _with_next_answers, batched=True, batch_size=rows, desc="Pairing answers for the KL term"
            )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Takes the batches of a step; gives each the divergence of policy from reference over all of them."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        if self.calculate_KL and batches:
            ratios = torch.cat([self._kl_ratios(self._prepare_inputs(batch)) for batch in batches])
            totals: Any = self.accelerator.gather(torch.stack([ratios.sum(), ratios.new_tensor(float(len(ratios)))]))
            kl = totals[0::2].sum() / totals[1::2].sum()
            for batch in batches:
                batch[STEP_KL] = kl
        return batches, items

    def _kl_ratios(self, batch: dict[str, Any]) -> torch.Tensor:
        """Returns log pi(y'|x) - log pi_ref(y'|x) of a batch's mismatched answers, [B]."""
        with torch.no_grad(), self.compute_loss_context_manager():
            policy: Any = super()._compute_kl_logps(self.model_wrapped, batch)
            if self.precompute_ref_logps:
                reference: Any = batch["ref_KL_logps"]
            elif self.ref_model is not None:
                reference = super()._compute_kl_logps(self.ref_model, batch)
            else:
                adapted: Any = self.accelerator.unwrap_model(self.model)
                with use_adapter(adapted, adapter_name=None):
                    reference = super()._compute_kl_logps(self.model, batch)
        return policy - reference

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes TRL's loss, in training with the divergence of the whole step."""
        wanted, sources = inputs["label"].bool(), inputs[ROW_SOURCES]
        inputs[ROW_SOURCES] = torch.cat([sources[wanted], sources[~wanted]])  # as TRL lays their losses out
        kl = inputs.pop(STEP_KL, None)
        if kl is not None:
            # What TRL asks for next: the policy's log-probabilities, and without a cache the reference's.
            cached = inputs.get("ref_KL_logps") if self.precompute_ref_logps else None
            self._kl_logps = [kl, torch.zeros_like(kl)] if cached is None else [kl + cached]
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> Any:
        return self._kl_logps.pop(0) if self._kl_logps else super()._compute_kl_logps(model, batch)


STEP_KL = "step_kl"


def _with_next_answers(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Gives each prompt the answer to the one before it, and the first the last one's."""
    answers = rows["completion_ids"]
    return {"KL_completion_ids": answers[-1:] + answers[:-1]}


class ReferenceKeeper(TrainerCallback):
    """Keeps a reference that moves with the policy (TR-DPO, Gorbatovski et al. 2024, arXiv:2404.09656) in checkpoints.

    TRL saves the policy alone, so that a resumed run would fall back to the reference of the first step.
    """

    FILE = "reference.safetensors"

    def __init__(self) -> None:
        self.reference: Any = None

    def keep(self, trainer: DPOTrainer | KTOTrainer) -> None:
        """Takes the reference of a trainer, which needs its callbacks before it has one.

        Raises:
            RecipeError: The reference lies in pieces on several devices.
        """
        plugin = trainer.args.deepspeed_plugin
        if trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
            raise RecipeError(
                "trainer.sync_ref_model moves the reference, and one that is sharded cannot be kept in checkpoints",
                hint="use ZeRO-2 or plain data parallelism",
            )
        self.reference = trainer.ref_model

    def on_save(self, args, state, control, **kwargs):
        """Writes the reference into the checkpoint, before its manifest is."""
        if self.reference is not None and PartialState().is_main_process:
            save_model(self.reference, str(self._path(args, state)))

    def on_train_begin(self, args, state, control, **kwargs):
        """Takes the reference back from the checkpoint that the run resumes from."""
        if self.reference is not None and state.global_step > 0:
            load_model(self.reference, str(self._path(args, state)))

    def _path(self, args: TrainingArguments, state: TrainerState) -> Path:
        return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / self.FILE


def refuse_moving(job: Job, fixes: str = "") -> None:
    """Refuses a reference that is to move with the policy where it cannot.

    Args:
        job: The job, whose trainer has ``sync_ref_model``.
        fixes: What else than an adapter keeps it from moving, if anything does.

    Raises:
        RecipeError: It cannot.
    """
    recipe = job.loaded.recipe
    if fixed := recipe.section if recipe.adapts else fixes:
        what = f"trainer.sync_ref_model moves a second model by all the weights of the policy; with {fixed} it cannot"
        raise RecipeError(what, where=str(job.loaded.path), hint="drop one of the two")


def keeping_reference(trainer_class: Any, common: dict[str, Any], *, moves: bool) -> Any:
    """Builds a trainer whose reference, if it moves with the policy, is kept in checkpoints."""
    keepers = [ReferenceKeeper()] if moves else []
    trainer = trainer_class(**common | {"callbacks": [*keepers, *common["callbacks"]]})
    for keeper in keepers:
        keeper.keep(trainer)
    return trainer
