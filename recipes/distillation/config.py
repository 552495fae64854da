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
        """Refuses values that no loss can be made of.

        Raises:
            ValueError: With the first of them.
        """
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}, but it is a share from 0 to 1")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}, but it divides: above 0")
        if self.hidden_cosine < 0:
            raise ValueError(f"hidden_cosine is {self.hidden_cosine}, but it is a weight: 0 or more")
        if self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}, but at least one token has to be computed at a time")
        if self.loss_type != "nll" or self.label_smoothing_factor:
            raise ValueError("distillation has its own loss: drop loss_type and label_smoothing_factor")
