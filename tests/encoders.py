"""Tiny encoders built in code: BERT with a WordPiece vocabulary, ModernBERT with byte-level BPE."""

from pathlib import Path
from typing import Any

from .conftest import TEXT, build_tokenizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ENCODERS = ("bert", "modernbert")
_NAMED = {f"{name.strip('[]').lower()}_token": name for name in SPECIALS}


def wordpiece_tokenizer() -> Any:
    """Trains a WordPiece of about 200 pieces, with BERT's special tokens and no EOS."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    _frame(tokenizer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_NAMED)


def byte_tokenizer() -> Any:
    """The byte-level BPE of the other tests, with the special tokens of ModernBERT."""
    tokenizer = build_tokenizer(SPECIALS, **_NAMED)
    _frame(tokenizer.backend_tokenizer)
    return tokenizer


def _frame(tokenizer: Any) -> None:
    from tokenizers import processors

    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )


def save_encoder(folder: Path, kind: str) -> Path:
    """Saves a two-layer ``bert`` or ``modernbert`` with random weights and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    tokenizer = wordpiece_tokenizer() if kind == "bert" else byte_tokenizer()
    special = {"pad_token_id": tokenizer.pad_token_id, "cls_token_id": tokenizer.cls_token_id}
    own = (
        {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        if kind == "bert"
        else {"sep_token_id": tokenizer.sep_token_id, "bos_token_id": None, "eos_token_id": None, **special}
    )
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        **(own | {"pad_token_id": tokenizer.pad_token_id}),
    )
    model: Any = AutoModelForMaskedLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
