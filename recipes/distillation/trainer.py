"""SFTTrainer with a teacher.

The loss of a step is ``alpha CE + (1 - alpha) T^2 KL(teacher || student) + w cos``, each a mean over the tokens that
carry loss in all batches and processes of the step. CE and KL: Hinton et al. 2015 (arXiv:1503.02531), section 2, where
T^2 makes up for the 1 / T^2 that the temperature takes from the gradient. cos: the third term of DistilBERT's loss
(Sanh et al. 2019, arXiv:1910.01108, section 2) on the last layer's hidden states, the student's last to the teacher's
last, after the final norm.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from trl.models.utils import _ForwardRedirection, prepare_deepspeed
from trl.trainer.sft_config import SFTConfig

from ...data_tools.collate import TOKEN_SOURCES
from ...evals.models import under_adapter
from ..trainers.text import BySourceTrainer
from .cached import IDS, LOG_Q, LOG_REST, ROW
from .losses import Divergence, cosine_distance, divergence, predicting, summed, top_k_divergence
from .teacher import last_hidden, logits_head, model_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class DistillConfig(SFTConfig):
    """Settings of offline distillation, beside those of TRL's SFT."""

    alpha: float = field(default=0.5, metadata={"help": "Weight of the cross entropy; the divergence has the rest."})
    temperature: float = field(default=2.0, metadata={"help": "Divides the logits of both models in the divergence."})
    hidden_cosine: float = field(
        default=0.0, metadata={"help": "Weight of the cosine distance of the last hidden states; 0 leaves it out."}
    )
    chunk: int = field(default=512, metadata={"help": "Tokens whose logits are held at the same time."})

    def __post_init__(self) -> None:
        """Refuses other losses.

        Raises:
            ValueError: One is asked for.
        """
        super().__post_init__()
        if self.loss_type != "nll" or self.label_smoothing_factor:
            raise ValueError("distillation has its own loss: drop loss_type and label_smoothing_factor")


class DistillTrainer(BySourceTrainer):
    """An SFTTrainer whose student also learns from a teacher.

    Every forward pass goes through the wrapper of the student (DDP, FSDP, DeepSpeed), so that gradients are reduced and
    sharded weights gathered; the output layer runs inside it too, a chunk of tokens at a time.

    TRL's private names that this module uses: ``_ForwardRedirection``, ``_metrics``, ``_total_train_tokens``.

    Args:
        teacher: The teacher, frozen; None where its answers come with the batches, or where nothing of it is used.
        tokens: Rows of the output layers that both models have.
        arguments: Those of BySourceTrainer.
    """

    args: DistillConfig  # type: ignore[assignment]

    def __init__(self, *, teacher: "PreTrainedModel | None" = None, tokens: int, **arguments: Any):
        super().__init__(**arguments)
        if self.aux_loss_enabled:
            raise ValueError(
                "the student is a mixture of experts, whose balancing loss distillation leaves out: say "
                "trainer.router_aux_loss_coef: 0"
            )
        self._tokens = tokens
        self._redirect = _ForwardRedirection()
        self._teacher: Any = None
        if teacher is not None and self.is_deepspeed_enabled:
            self._teacher = prepare_deepspeed(teacher, self.accelerator)  # type: ignore[arg-type]
        elif teacher is not None:
            self._teacher = self.accelerator.prepare_model(teacher, evaluation_mode=True)  # type: ignore[arg-type]

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = self._signature_columns or []
        self._signature_columns = columns if ROW in columns else [*columns, ROW]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Computes the loss of a batch; logs its cross entropy, divergence and distance, each a mean over tokens.

        Args:
            model: The student, wrapped.
            inputs: ``input_ids`` and ``labels`` [B, L], ``position_ids`` (packed) or ``attention_mask``, and the
                teacher's answers if they were made before.
            return_outputs: Whether the caller wants a pair; there are no outputs to give.
            num_items_in_batch: Tokens that carry loss in the whole step, over all processes.
        """
        labels = inputs["labels"]
        count = (labels[:, 1:] != -100).sum()
        most = self._most_chunks(int(count))
        with self.accelerator.autocast():
            student: Any = self.accelerator.unwrap_model(model)
            sums = self._redirect(model, student, self._sums, student, inputs, most)
        sums, by_source = sums[:4], sums[4:]
        if by_source.numel():
            counts = self._of_sources(inputs, labels).sum(1)
            self.sources.add_sums(torch.stack([by_source.detach(), counts], dim=1).double())
        cross_entropy, kl, distance, _ = sums
        args = self.args
        loss = args.alpha * cross_entropy + (1 - args.alpha) * args.temperature**2 * kl + args.hidden_cosine * distance
        loss = loss / torch.as_tensor(count if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        if args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the mean over processes becomes a sum
        self._log_batch(inputs, torch.cat([sums.detach(), count[None]]))
        return (loss, {}) if return_outputs else loss

    def _sums(self, student: Any, inputs: dict[str, Any], chunks: int) -> torch.Tensor:
        """Adds up a batch: cross entropy, divergence, cosine distance, right guesses; in training each source's too."""
        base = under_adapter(student)
        hidden, labels = predicting(last_hidden(base, model_inputs(inputs)), inputs["labels"])
        diverge, distance = self._teach(inputs, hidden)
        of_sources = self._of_sources(inputs, inputs["labels"]) if student.training else None
        sums = summed(
            hidden, labels, logits_head(base), diverge, chunk=self.args.chunk, chunks=chunks, sources=of_sources
        )
        by_source = () if sums.by_source is None else (sums.by_source,)
        return torch.cat([torch.stack([sums.cross_entropy, sums.divergence, distance, sums.correct]), *by_source])

    def _of_sources(self, inputs: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
        """Says which of the tokens that carry loss are of which source, [S, N]."""
        kept = labels[:, 1:] != -100
        sources = inputs.get(TOKEN_SOURCES)
        numbers = torch.zeros_like(labels) if sources is None else sources
        return numbers[:, 1:][kept] == torch.arange(len(self.sources.names), device=labels.device)[:, None]

    def _teach(self, inputs: dict[str, Any], hidden: torch.Tensor) -> tuple[Divergence | None, torch.Tensor]:
        """Returns how far the student's logits are from the teacher's, and the sum of its states' distances."""
        args, tokens, nothing = self.args, self._tokens, hidden.new_zeros((), dtype=torch.float32)
        if IDS in inputs:
            # Rows that fill up the last held-out batch have lost their labels, and come last.
            ids, log_q, log_rest = (inputs[name][: len(hidden)] for name in (IDS, LOG_Q, LOG_REST))

            def from_answers(logits: torch.Tensor, part: slice) -> torch.Tensor:
                student = logits[..., :tokens]
                return top_k_divergence(student, ids[part].long(), log_q[part], log_rest[part], args.temperature)

            return from_answers, nothing
        if self._teacher is None:
            return None, nothing
        teacher: Any = self.accelerator.unwrap_model(self._teacher)
        with torch.no_grad():
            states = self._redirect(self._teacher, teacher, last_hidden, teacher, model_inputs(inputs))
        theirs, _ = predicting(states, inputs["labels"])
        head = logits_head(teacher)

        def from_teacher(logits: torch.Tensor, part: slice) -> torch.Tensor:
            with torch.no_grad():
                target = head(theirs[part]).float()[..., :tokens]
            return divergence(logits[..., :tokens], target, args.temperature)

        distance = cosine_distance(hidden, theirs).sum() if args.hidden_cosine else nothing
        return (from_teacher if args.alpha < 1 else None), distance

    def _most_chunks(self, count: int) -> int:
        """Returns how many chunks the process with the most tokens has: sharded heads are gathered by all together."""
        chunks = -(-count // self.args.chunk)
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled) or self.accelerator.num_processes == 1:
            return chunks
        counted = torch.tensor([chunks], device=self.accelerator.device)
        return int(self.accelerator.gather(counted).max())  # type: ignore[union-attr]

    def _log_batch(self, inputs: dict[str, Any], sums: torch.Tensor) -> None:
        """Adds a batch of all processes to the metrics; ``kl`` is at the temperature, without its square."""
        mask = inputs.get("attention_mask")
        read = inputs["input_ids"].new_tensor(inputs["input_ids"].numel()) if mask is None else mask.sum()
        sums = self.accelerator.reduce(torch.cat([sums.double(), read[None].double()]), "sum")  # type: ignore[assignment]
        cross_entropy, kl, distance, correct, count, tokens = sums.tolist()
        model: Any = self.model
        mode, count = "train" if model.training else "eval", max(count, 1)
        metrics = self._metrics[mode]
        metrics["ce"].append(cross_entropy / count)
        metrics["mean_token_accuracy"].append(correct / count)
        if self.args.alpha < 1:
            metrics["kl"].append(kl / count)
        if self.args.hidden_cosine:
            metrics["cosine"].append(distance / count)
        if mode == "train":
            self._total_train_tokens += int(tokens)
        metrics["num_tokens"] = [self._total_train_tokens]
