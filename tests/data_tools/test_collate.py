"""A packed batch trains exactly as its documents would on their own."""

import pytest
import torch
from posttrain.data_tools.collate import ROW_LENGTHS, PackedRowCollator, padded_collator

DOCUMENTS = [[[5, 6, 7, 8, 9], [10, 11, 12]], [[20, 21, 22, 23], [30], [40, 41]]]


def packed(documents):
    ids = [token for document in documents for token in document]
    return {"input_ids": ids, "labels": list(ids), "seq_lengths": [len(document) for document in documents]}


ROWS = [packed(documents) for documents in DOCUMENTS]
FLAT = [document for documents in DOCUMENTS for document in documents]


@pytest.fixture(params=["sdpa", "eager"])
def model(request, tiny_model_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, attn_implementation=request.param).eval()


def logits_of(model, batch):
    inputs = {key: value for key, value in batch.items() if key in ("input_ids", "position_ids", "attention_mask")}
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


def losses(model, batch):
    """Summed loss and count of labels that a next-token loss sees."""
    logits, labels = logits_of(model, batch)[:, :-1], batch["labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return loss.item(), int((labels != -100).sum())


def test_packed_documents_do_not_see_each_other(model):
    logits = logits_of(model, PackedRowCollator(pad_token_id=0)(ROWS))
    for row, documents in enumerate(DOCUMENTS):
        at = 0
        for document in documents:
            alone = logits_of(model, {"input_ids": torch.tensor([document])})[0]
            torch.testing.assert_close(logits[row, at : at + len(document)], alone, atol=1e-5, rtol=0)
            at += len(document)


def test_an_attention_mask_would_leak_so_there_is_none(model):
    batch = PackedRowCollator(pad_token_id=0)(ROWS)
    assert "attention_mask" not in batch
    masked = logits_of(model, {**batch, "attention_mask": torch.ones_like(batch["input_ids"])})
    alone = logits_of(model, {"input_ids": torch.tensor([DOCUMENTS[0][1]])})[0]
    assert (masked[0, 5:8] - alone).abs().max() > 1e-3


def test_packed_loss_is_the_loss_of_the_documents(model):
    together, count = losses(model, PackedRowCollator(pad_token_id=0)(ROWS))
    apart = [losses(model, padded_collator(0)([{"input_ids": ids, "labels": ids}])) for ids in FLAT]
    assert count == sum(n for _, n in apart)
    assert together == pytest.approx(sum(loss for loss, _ in apart), abs=1e-4)


def test_rows_and_the_flattened_batch_give_the_same_loss(model):
    rows = PackedRowCollator(pad_token_id=0)(ROWS)
    flat = PackedRowCollator(pad_token_id=0, flatten=True)(ROWS)
    assert losses(model, rows) == pytest.approx(losses(model, flat), abs=1e-4)


def test_flattening_is_what_trl_does_without_padding():
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    ours = PackedRowCollator(pad_token_id=0, flatten=True)(ROWS)
    assert ours.pop(ROW_LENGTHS).tolist() == [len(row["input_ids"]) for row in ROWS]
    theirs = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(ROWS)
    assert ours.keys() == theirs.keys()
    assert {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"} <= ours.keys()
    for key, value in theirs.items():
        assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(value)), key


def test_positions_restart_and_padding_is_a_document_without_labels():
    batch = PackedRowCollator(pad_token_id=99, pad_to_multiple_of=5)(ROWS)
    assert batch["input_ids"].shape == (2, 10)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1], [0, 1, 2, 3, 0, 0, 1, 0, 1, 2]]
    assert batch["input_ids"][0, 8:].tolist() == [99, 99]
    assert batch["labels"][1].tolist() == [-100, 21, 22, 23, -100, -100, 41, -100, -100, -100]


def test_labels_that_are_masked_stay_masked():
    row = {"input_ids": [1, 2, 3], "labels": [-100, -100, 3], "seq_lengths": [3]}
    assert PackedRowCollator(pad_token_id=0)([row])["labels"].tolist() == [[-100, -100, 3]]


def test_a_row_whose_lengths_do_not_add_up_is_refused():
    with pytest.raises(ValueError, match="add up"):
        PackedRowCollator(pad_token_id=0)([{"input_ids": [1, 2], "labels": [1, 2], "seq_lengths": [3]}])


def test_the_padded_collator_masks_padding():
    batch = padded_collator(0)([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}])
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
