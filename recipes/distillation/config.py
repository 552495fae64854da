"""The settings of offline distillation."""

from dataclasses import dataclass, field

from trl.trainer.sft_config import SFTConfig


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
