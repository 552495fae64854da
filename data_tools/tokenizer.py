"""Training a byte-level BPE tokenizer, the same from the same texts on every machine."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from .files import write_atomic
from .tool import Sources, Tool

BYTES = 256
SPECIAL_TOKENS = ("<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
# What is never merged across: contractions, words with what stands before them, numbers, punctuation, white space.
# The pattern of cl100k_base and Llama 3, with numbers of one digit (as Qwen 2 has them) or of up to three.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer(Tool):
    """Trains a byte-level BPE tokenizer (Sennrich et al. 2016, arXiv:1508.07909) and saves it for ``AutoTokenizer``.

    Every text round-trips, as whatever was not merged falls back to bytes; there is no unknown token. Nothing is put
    before or after a text.
    """

    sources: Sources
    """What to read: every text, prompt, completion and message of the rows once. Weights do not matter."""
    vocab_size: int = 32_000
    """Tokens at most, the special ones and the 256 bytes included; texts too poor in pairs give fewer."""
    special_tokens: list[str] = Field(list(SPECIAL_TOKENS))
    """They get the ids from 0, in this order."""
    pad_token: str = "<|pad|>"
    """One of the special tokens."""
    eos_token: str = "<|endoftext|>"
    """Another of them. Were they the same, masking padding would mask every end of text."""
    split_digits: bool = True
    """Whether every digit is a token of its own, which makes arithmetic learnable; otherwise numbers are cut into
    groups of up to three."""
    min_frequency: int = 2
    """How often a pair must occur to become a token."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.02
    """The largest share of a source's rows that may be unusable."""

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        special = self.special_tokens
        if len(set(special)) != len(special) or not all(special):
            raise ValueError("special_tokens: a special token is empty or stands twice")
        for name in ("pad_token", "eos_token"):
            if getattr(self, name) not in special:
                raise ValueError(f"{name}: '{getattr(self, name)}' is not among special_tokens")
        if self.pad_token == self.eos_token:
            raise ValueError("pad_token: is also the eos_token; give padding a token of its own")
        if self.vocab_size < (least := BYTES + len(special)):
            raise ValueError(
                f"vocab_size: {self.vocab_size} is too small; {BYTES} bytes and {len(special)} special tokens need at "
                f"least {least}"
            )
        return self

    def run(self, output_dir: Path) -> None:
        """Reads the texts once, of which only counts of words are held in memory, and writes ``tokenizer.json``.

        Raises:
            DataError: A source cannot be read, has no text, or too many bad rows.
            PosttrainError: The folder cannot be written.
        """
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        bpe = tokenizers.Tokenizer(models.BPE())
        pattern = tokenizers.Regex(PATTERN % ("" if self.split_digits else "{1,3}"))
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(pattern, behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=self.special_tokens,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            min_frequency=self.min_frequency,
            show_progress=False,
        )
        bpe.train_from_iterator(self._texts(), trainer)
        named = {self.pad_token, self.eos_token}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe,
            pad_token=self.pad_token,
            eos_token=self.eos_token,
            extra_special_tokens=[token for token in self.special_tokens if token not in named],
            clean_up_tokenization_spaces=False,
        )
        with tempfile.TemporaryDirectory() as temporary:
            tokenizer.save_pretrained(temporary)
            for path in sorted(Path(temporary).iterdir()):
                write_atomic(output_dir / path.name, path.read_bytes())

    def _texts(self) -> Iterator[str]:
        """Yields all texts in the rows of the sources."""
        from .dataset import load

        kinds: Any = ("text", "messages", "prompt_completion")
        for source in self.sources:
            for _, row in load(source, Path(), kinds, max_bad_share=self.max_bad_share):
                for key in ("text", "prompt", "completion", "messages"):
                    yield from _strings(row.get(key))


def _strings(value: Any) -> Iterator[str]:
    """Yields a string, or the contents of messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for message in value:
            if isinstance(message.get("content"), str):
                yield message["content"]
