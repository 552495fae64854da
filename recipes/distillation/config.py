"""The settings of offline distillation."""

from dataclasses import dataclass, field

from trl.trainer.sft_config import SFTConfig


@dataclass
class DistillConfig(SFTConfig):
    """Settings of offline distillation, beside those of TRL's SFT."""

    alpha: float = field(default=0.5, metadata={"help": "Weight of the cross entropy; the divergence has the rest."})
