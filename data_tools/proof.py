"""Proof, before anything is trained, that the loss lies where it is meant to: on probes, and on rows of the data."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat_templates import ChatTemplate, Finding, TemplateError, verify
from ..chat_templates.rendering import require_generation_marks
from .dataset import load
from .examples import Encoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from .spec import DataSpec, Kind

_ROWS = 8  # of each source


@dataclass(frozen=True)
class Proof:
    """What is known of the loss mask.

    Attributes:
        summary: What was proved on what, or why nothing had to be.
        findings: Those of ``chat_templates.verify``.
    """

    summary: str
    findings: tuple[Finding, ...] = ()

    @property
    def failed(self) -> list[Finding]:
        """What did not pass."""
        return [finding for finding in self.findings if not finding.ok]


def prove_mask(
    spec: "DataSpec",
    *,
    base_dir: Path,
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate,
    accepts: "Sequence[Kind]",
    max_length: int | None,
) -> Proof:
    """Proves for a template, a tokenizer and the first rows of each source that the assistant's turns carry the loss.

    The rows are read, given their roles and marked as ``prepare`` does it. Text that stays text needs no template, and
    an answer to a prompt needs no marks in one: it is what follows the prompt.

    Args:
        spec: The ``data:`` section.
        base_dir: Where relative paths start, the recipe's folder.
        tokenizer: With the template installed.
        template: The template.
        accepts: The kinds of rows that the stage can use.
        max_length: The tokens that conversations are cut to; None if they are not.

    Raises:
        DataError: A source cannot be read.
    """
    encoder = Encoder(tokenizer, template, "completion" if spec.loss_on == "last" else "assistant")
    rows: list[tuple[str, dict[str, Any]]] = []
    for source in (*spec.train, *(spec.eval or ())):
        read = load(source, base_dir, accepts, template=template, max_bad_share=spec.max_bad_share)
        rows += [row for row in itertools.islice(read, _ROWS) if isinstance(row[1].get("prompt", []), list)]
    talks = [(where, row) for where, row in rows if "messages" in row or "prompt" in row]
    if not talks:
        return Proof("the rows are text and take no turns of it")
    if not template.marks_generation:
        if all(len(row.get("completion", ())) == 1 for _, row in talks):
            return Proof("it marks no turns, and none need marks: each answer is what follows its prompt")
        try:
            require_generation_marks(template)
        except TemplateError as error:
            return Proof("0 checks passed", (Finding("generation marks", False, "error", str(error)),))
    conversations = [(where, encoder.conversation(row)) for where, row in talks]
    findings = verify(template, tokenizer, rows=conversations, max_length=max_length)
    passed = sum(finding.ok for finding in findings)
    return Proof(f"{passed} checks passed on probes and on {len(talks)} rows of the data", tuple(findings))
