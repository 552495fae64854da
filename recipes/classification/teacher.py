"""What a classifier that is the teacher says of the training rows, asked once before training begins."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...evals.forward import outputs
from ...evals.labels import problem_of
from ...evals.models import make_room
from ...evals.stats.classification import Problem
from ..distillation.teacher import check_vocabulary
from ..errors import RecipeError
from ..model import pretrained, whole_weights
from ..schema import TeacherSpec
from .rows import token_columns

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def teacher_logits(
    spec: TeacherSpec,
    problem: Problem,
    labels: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    tokens: "datasets.Dataset",
    batch_size: int,
) -> torch.Tensor:
    """Runs the teacher over the training rows, each process over its share, and forgets it.

    A few numbers a row are all that training needs of it, whatever the number of epochs, so the teacher takes no memory
    beside the student.

    Args:
        spec: The recipe's section.
        problem: What both predict.
        labels: The student's classes; the teacher's outputs are put into their order.
        tokenizer: The student's, whose ids the rows hold.
        tokens: The rows, with ``input_ids``.
        batch_size: Rows of a forward pass.

    Returns:
        Float32 ``[N, C]``.

    Raises:
        RecipeError: The teacher cannot be loaded, has another vocabulary, or predicts something else.
    """
    model, order = load_teacher(spec, problem, labels, tokenizer)
    return _run(model, tokens, batch_size, f"teacher {spec.name_or_path}")[:, order]


def load_teacher(
    spec: TeacherSpec,
    problem: Problem,
    labels: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    empty: bool = False,
) -> "tuple[PreTrainedModel, list[int]]":
    """Loads the teacher, and says which of its outputs stands for each of the student's.

    Raises:
        RecipeError: The teacher cannot be loaded, has another vocabulary, or predicts something else.
    """
    config = pretrained(spec).config()
    order = _order(spec, config, problem, labels)
    check_vocabulary(spec, config, tokenizer)
    with whole_weights():
        model: Any = pretrained(spec).weights(
            kind="classifier", dtype=spec.dtype, attn=spec.attn_implementation, empty=empty
        )
    make_room(model, tokenizer)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.eval(), order


def _order(spec: TeacherSpec, config: Any, problem: Problem, labels: Sequence[str]) -> list[int]:
    """Returns which output of the teacher stands for each of the student's."""
    where = f"teacher {spec.name_or_path}"
    if problem_of(config) != problem:
        raise RecipeError(f"it was trained for {problem_of(config)}, but the student is for {problem}", where=where)
    if problem == "regression":
        if config.num_labels != 1:
            raise RecipeError(f"it has {config.num_labels} outputs where a regression has one", where=where)
        return [0]
    theirs = {config.id2label[number]: number for number in range(config.num_labels)}
    missing, strange = sorted(set(labels) - set(theirs)), sorted(set(theirs) - set(labels))
    if missing or strange:
        parts = [f"lacks {', '.join(missing[:5])}"] if missing else []
        parts += [f"has {', '.join(strange[:5])} besides"] if strange else []
        raise RecipeError(
            f"its classes are not the student's: it {' and '.join(parts)}",
            where=where,
            hint="teach with a classifier that was trained on the same classes, or name them in classify.labels",
        )
    return [theirs[name] for name in labels]


def _run(model: "PreTrainedModel", tokens: "datasets.Dataset", batch_size: int, where: str) -> torch.Tensor:
    """Computes the logits of all rows, each process those of every so-manieth row, and shares them."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState()
    model.to(state.device)  # type: ignore[arg-type]
    mine = range(state.process_index, len(tokens), state.num_processes)
    logits = outputs(model, token_columns(tokens).select(mine).to_list(), batch_size, where=where)
    result = torch.empty(len(tokens), logits.shape[1])
    for numbers, values in gather_object([(mine, logits)]):
        result[list(numbers)] = torch.from_numpy(values).float()
    return result
