"""What a stage is given to work with."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data_tools.extend_tokenizer import new_tokens_of
from .errors import RecipeError
from .load import Loaded
from .model import choose_template, load_tokenizer
from .schema import ObjectiveSpec
from .stage_table import STAGES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..chat_templates import ChatTemplate
    from ..data_tools.proof import Proof


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
    def new_tokens(self) -> tuple[int, ...]:
        """The ids of the tokens that a model must learn: those added, but padding, and those it was extended by."""
        learned = [token for token in self.added if token != self.tokenizer.pad_token]
        added: Any = self.tokenizer.convert_tokens_to_ids(learned)
        return (*new_tokens_of(Path(str(self.loaded.recipe.model.name_or_path))), *added)

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return Path(self.loaded.recipe.output_dir)

    def option(self, name: str) -> Any:
        """Returns a trainer field, as the recipe or its default has it."""
        return self.loaded.option(name)

    @property
    def source_names(self) -> tuple[str, ...]:
        """The names of the training data's sources, in the order of their numbers in the rows."""
        return tuple(source.title for source in self.loaded.recipe.data.train)

    @property
    def cut_to(self) -> int | None:
        """The tokens that a conversation is cut to, or None where long ones are dropped whole."""
        return self.option("max_length") if self.loaded.recipe.data.too_long == "truncate" else None


def cache_dir() -> Path:
    """Returns where tokenised data is kept: beside the Hub's own caches, which users put where there is room."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "posttrain"


def prove_template(job: Job) -> "Proof | None":
    """Proves the loss mask that a chat template gives, where the stage puts the loss on the assistant alone.

    Returns:
        What was found; None if there is no template, or all of a row carries loss.

    Raises:
        DataError: A source cannot be read.
    """
    from ..data_tools.proof import prove_mask

    if job.template is None or not job.option("assistant_only_loss"):
        return None
    return prove_mask(
        job.loaded.recipe.data,
        base_dir=job.loaded.path.parent,
        tokenizer=job.tokenizer,
        template=job.template,
        accepts=STAGES[job.loaded.recipe.stage].accepts,
        max_length=job.cut_to,
    )


def _prepare_masking(tokenizer: "PreTrainedTokenizerBase", objective: ObjectiveSpec, named: str) -> None:
    """Makes sure that tokens can be masked, and lets texts end as the tokenizer ends them, with its ``[SEP]``.

    Raises:
        RecipeError: There is no mask token, or it cannot be told which pieces make a word.
    """
    from ..data_tools.masking import word_pieces

    if tokenizer.mask_token_id is None:
        what = f"objective: mlm hides tokens behind a mask token, and the tokenizer of {named} has none"
        hint = "take an encoder's, or train one with such a token: `posttrain data tokenizer --mask-token '[MASK]'`"
        raise RecipeError(what, hint=hint)
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
        tokenizer.eos_token = tokenizer.sep_token
    if objective.whole_word and not word_pieces(tokenizer).any():
        what = "objective.whole_word: the vocabulary has no pieces that begin with ##, so words cannot be told"
        raise RecipeError(what, hint="drop whole_word")


def open_job(loaded: Loaded) -> Job:
    """Loads the tokenizer of a recipe and installs its chat template.

    Raises:
        RecipeError: The tokenizer cannot be loaded.
        TemplateError: The template does not fit the tokenizer.
    """
    from .. import chat_templates

    tokenizer = load_tokenizer(loaded.recipe.model)
    if loaded.recipe.objective:
        model = loaded.recipe.model
        _prepare_masking(tokenizer, loaded.recipe.objective, str(model.tokenizer or model.name_or_path))
    template = choose_template(loaded.recipe.model, tokenizer)
    if template and loaded.option("assistant_only_loss") and not template.marks_generation:
        template = chat_templates.recognise(template, tokenizer) or template
    added = chat_templates.install(template, tokenizer) if template else chat_templates.ensure_pad(tokenizer)
    return Job(loaded, tokenizer, template, tuple(added))
