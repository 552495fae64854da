"""What a stage is given to work with."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .load import Loaded
from .stages import STAGES
from .trainer_fields import fields_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..chat_templates import ChatTemplate


@dataclass(frozen=True)
class Job:
    """One recipe about to be prepared or trained.

    Attributes:
        loaded: The recipe.
        tokenizer: Its tokenizer, with the chat template installed.
        template: The chat template, if there is one.
        added: Tokens that the template, or padding, added to the vocabulary.
    """

    loaded: Loaded
    tokenizer: "PreTrainedTokenizerBase"
    template: "ChatTemplate | None"
    added: tuple[str, ...]

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return Path(self.loaded.recipe.output_dir)

    def option(self, name: str) -> Any:
        """Returns a trainer field: the recipe's value, or the configuration class's default."""
        recipe = self.loaded.recipe
        field = fields_of(STAGES[recipe.stage].config)[name]
        return recipe.trainer.get(name, field.default)

    @property
    def cut_to(self) -> int | None:
        """The tokens that a conversation is cut to, or None where long ones are dropped whole."""
        recipe = self.loaded.recipe
        cuts = recipe.data.too_long == "truncate" and "max_length" in fields_of(STAGES[recipe.stage].config)
        return self.option("max_length") if cuts else None


def cache_dir() -> Path:
    """Returns where tokenised data is kept: beside the Hub's own caches, which users put where there is room."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "posttrain"


def open_job(loaded: Loaded) -> Job:
    """Loads the tokenizer of a recipe and installs its chat template.

    Raises:
        RecipeError: The tokenizer cannot be loaded.
        TemplateError: The template does not fit the tokenizer.
    """
    from .. import chat_templates
    from .model import choose_template, load_tokenizer

    tokenizer = load_tokenizer(loaded.recipe.model)
    template = choose_template(loaded.recipe.model, tokenizer)
    added = chat_templates.install(template, tokenizer) if template else chat_templates.ensure_pad(tokenizer)
    return Job(loaded, tokenizer, template, tuple(added))
