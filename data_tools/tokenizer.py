"""Training a byte-level tokenizer, BPE or Unigram, the same from the same texts in any order on every machine."""

import hashlib
import io
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ..chat_templates.errors import PosttrainError
from .conversations import texts_of_turns
from .errors import DataError
from .files import write_atomic
from .spec import Share, SourceSpec
from .tool import Sources, Tool
from .tool_report import percent

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from tokenizers.pre_tokenizers import PreTokenizer

BYTES = 256
SPECIAL_TOKENS = ("<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
# What is never merged across: contractions, words with what stands before them, numbers, punctuation, white space.
# The pattern of cl100k_base and Llama 3, with numbers of one digit (as Qwen 2 has them) or of up to three.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Writing without spaces makes words of thousands of letters, each another one; the trainers' tables would hold them all
_LONGEST = r"[\s\S]{1,64}"
_COUNTED = 2**31 - 1  # the trainer of BPE counts pairs in 32 bits, and goes on with wrong counts beyond
_LETTERS = 16  # bytes of a piece of Unigram, at most
_UNKNOWN, _END = "\u2581", "\u2582"  # what SentencePiece needs besides; neither is a byte of the alphabet


class Tokenizer(Tool):
    """Trains a byte-level tokenizer, BPE or Unigram, and saves it for ``AutoTokenizer``.

    BPE is that of Sennrich et al. 2016 (arXiv:1508.07909), Unigram that of Kudo 2018 (arXiv:1804.10959). Every text
    round-trips, as whatever has no token of its own falls back to bytes; there is no unknown token. Nothing is put
    before or after a text. The files are the same bytes whatever the order of the rows.
    """

    sources: Sources
    """What to read: every text, prompt, completion and message of the rows once. Weights do not matter."""
    model: Literal["bpe", "unigram"] = "bpe"
    """`bpe` joins the most frequent pairs, and cuts a word by these joins in their order; `unigram` keeps the pieces
    without which the text would be least likely, and cuts a word into its likeliest pieces."""
    vocab_size: int = 32_000
    """Tokens at most, the special ones and the 256 bytes included; texts too poor in pairs give fewer."""
    special_tokens: list[str] = Field(list(SPECIAL_TOKENS))
    """They get the ids from 0, in this order."""
    pad_token: str = "<|pad|>"
    """One of the special tokens."""
    eos_token: str = "<|endoftext|>"
    """Another of them. Were they the same, masking padding would mask every end of text."""
    mask_token: str | None = None
    """What `objective: mlm` hides tokens behind, such as `[MASK]`: one of the special tokens, or put behind them."""
    split_digits: bool = True
    """Whether every digit is a token of its own, which makes arithmetic learnable; otherwise numbers are cut into
    groups of up to three."""
    min_frequency: int = 2
    """How often a pair must occur to become a token of `bpe`."""
    max_bytes: Annotated[int, Field(gt=0, le=_COUNTED)] = 2**30
    """Bytes of text to learn from, at most. Of more, texts are chosen by their hash, so that each source and each part
    of a file gives its share; it takes a few times as much memory. `bpe` cannot count beyond 2 GiB."""
    max_bad_share: Share = 0.02
    """The largest share of a source's rows that may be unusable."""

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        special = self._all_special
        if len(set(special)) != len(special) or not all(special):
            raise ValueError("special_tokens: a special token is empty or stands twice")
        for name in ("pad_token", "eos_token"):
            if getattr(self, name) not in special:
                raise ValueError(f"{name}: '{getattr(self, name)}' is not among special_tokens")
        if self.pad_token == self.eos_token:
            raise ValueError("pad_token: is also the eos_token; give padding a token of its own")
        if self.mask_token in (self.pad_token, self.eos_token):
            raise ValueError("mask_token: is also the pad_token or eos_token; give masking a token of its own")
        if self.model == "unigram" and self.min_frequency != type(self).model_fields["min_frequency"].default:
            raise ValueError("min_frequency: is a setting of bpe; unigram keeps pieces by what they are worth")
        if self.vocab_size < (least := BYTES + len(special)):
            raise ValueError(
                f"vocab_size: {self.vocab_size} is too small; {BYTES} bytes and {len(special)} special tokens need at "
                f"least {least}"
            )
        return self

    @property
    def _all_special(self) -> list[str]:
        """The special tokens in the order of their ids."""
        more = [] if self.mask_token is None or self.mask_token in self.special_tokens else [self.mask_token]
        return [*self.special_tokens, *more]

    def run(self, output_dir: Path) -> str:
        """Reads the texts twice, of which only counts of words are held in memory, and writes ``tokenizer.json``.

        Raises:
            DataError: A source cannot be read, has no text, or too many bad rows.
            PosttrainError: The folder cannot be written, or SentencePiece is not installed.
        """
        from transformers import PreTrainedTokenizerFast

        total = sum(
            len(text.encode(errors="surrogatepass")) for text in texts_of_sources(self.sources, self.max_bad_share)
        )
        share = min(1.0, self.max_bytes / max(total, 1))
        used = 0

        def sample() -> Iterator[str]:
            nonlocal used
            for text in texts_of_sources(self.sources, self.max_bad_share):
                data = text.encode(errors="surrogatepass")
                if share == 1 or hash_place(data) < share:
                    used += len(data)
                    yield text

        trained = self._train(sample())
        if not used:
            raise DataError(f"no text fits into max_bytes: {self.max_bytes}", hint="raise it, or cut the texts")
        named = {"pad_token": self.pad_token, "eos_token": self.eos_token}
        if self.mask_token is not None:
            named["mask_token"] = self.mask_token
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=trained,
            **named,
            extra_special_tokens=[token for token in self._all_special if token not in named.values()],
            clean_up_tokenization_spaces=False,
        )
        with tempfile.TemporaryDirectory() as temporary:
            tokenizer.save_pretrained(temporary)
            for path in sorted(Path(temporary).iterdir()):
                write_atomic(output_dir / path.name, path.read_bytes())
        return f"{output_dir}: {len(tokenizer):,} tokens, from {used:,} bytes ({percent(used, total)} of the texts)"

    def _train(self, texts: Iterator[str]) -> "Backend":
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers

        words, cut = (
            pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
            for pattern in (PATTERN % ("" if self.split_digits else "{1,3}"), _LONGEST)
        )
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        if self.model == "unigram":
            counts = _count_words(texts, pre_tokenizers.Sequence([words, cut]), to_bytes)
            counts.update(alphabet)  # each byte once, so that it is a piece
            backend = tokenizers.Tokenizer(models.Unigram(self._train_unigram(counts)))
        else:
            backend = tokenizers.Tokenizer(models.BPE())
            backend.pre_tokenizer = pre_tokenizers.Sequence([words, cut, to_bytes])
            trainer = trainers.BpeTrainer(
                vocab_size=self.vocab_size,
                special_tokens=self._all_special,
                initial_alphabet=alphabet,
                min_frequency=self.min_frequency,
                show_progress=False,
            )
            backend.train_from_iterator(texts, trainer)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])  # what is long is cut for training alone
        backend.decoder = decoders.ByteLevel()
        return backend

    def _train_unigram(self, counts: Counter[str]) -> list[tuple[str, float]]:
        """Returns the pieces with their log-probabilities, in the order of their ids.

        SentencePiece is the trainer of the method's author. That of ``tokenizers`` makes a quarter more tokens of
        held-out text, and files that differ from training to training. Both take for pieces only what is in two
        different words, so that a word which is part of no other never becomes one, however frequent: here each word
        that occurs twice is two words, one of them with a mark behind it that no piece may hold.
        """
        try:
            import sentencepiece
        except ImportError as error:
            hint = "pip install 'posttrain[unigram]'"
            raise PosttrainError("the model unigram needs the package sentencepiece", hint=hint) from error
        written = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "words.tsv"
            with path.open("w", encoding="utf-8") as file:
                for word, count in sorted(counts.items()):  # their order decides ties
                    file.write(f"{word}\t{count}\n" if count == 1 else f"{word}\t{count - 1}\n{word}{_END}\t1\n")
            sentencepiece.SentencePieceTrainer.train(
                input=str(path),
                input_format="tsv",
                model_writer=written,
                model_type="unigram",
                vocab_size=self.vocab_size - len(self._all_special) + 2,
                hard_vocab_limit=False,
                character_coverage=1.0,
                max_sentencepiece_length=_LETTERS,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                split_by_whitespace=False,
                split_by_unicode_script=False,
                split_by_number=False,
                unk_id=0,
                unk_piece=_UNKNOWN,
                user_defined_symbols=[_END],
                bos_id=-1,
                eos_id=-1,
                num_threads=1,  # sums in one order
                minloglevel=2,
            )
        model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
        pieces = [(model.id_to_piece(place), model.get_score(place)) for place in range(model.get_piece_size())]
        pieces = [(piece, score) for piece, score in pieces if piece not in (_UNKNOWN, _END)]
        least = min(score for _, score in pieces)
        # A score below that of its bytes: written out in a text, a special token is never cut as itself.
        specials = [(token, least * (len(token.encode()) + 1)) for token in self._all_special]
        return specials + pieces


def texts_of_sources(sources: Sequence[SourceSpec], max_bad_share: float) -> Iterator[str]:
    """Yields every text, prompt, completion and message of the rows of sources, reasoning and calls too.

    Raises:
        DataError: A source cannot be read, has no text, or too many bad rows.
    """
    from .dataset import load

    kinds: Any = ("text", "messages", "prompt_completion")
    for source in sources:
        for _, row in load(source, Path(), kinds, max_bad_share=max_bad_share):
            for key in ("text", "prompt", "completion", "messages"):
                yield from texts_of_turns(row.get(key))


def hash_place(data: bytes) -> float:
    """Returns a number from 0 to 1 that the text alone decides, to choose texts by."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) / 2**64


def _count_words(texts: Iterator[str], words: "PreTokenizer", to_bytes: "PreTokenizer") -> Counter[str]:
    """Counts words, as characters of the byte alphabet."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in words.pre_tokenize_str(text))
    return Counter({to_bytes.pre_tokenize_str(word)[0][0]: count for word, count in counts.items()})
