"""``posttrain parity`` in words: a table of what was compared, and the first token that differs."""

from collections.abc import Iterator

from ..evals.parity import ParityReport
from ..evals.parity.compare import TOLERANCES


def parity_lines(found: ParityReport) -> Iterator[str]:
    """Yields the lines that tell of a comparison: the two forms, a line for each check, the verdict and its reason."""
    yield f"{found.one.name}: {found.one.place}"
    yield f"{found.other.name}: {found.other.place}"
    width = max(len(check.name) for check in found.checks)
    for check in found.checks:
        largest = "" if check.largest is None else f"{check.largest:.3g}"
        yield f"  {check.name:{width}}  {check.status:12}  {largest:9}  {check.detail}"
    for note in found.notes:
        yield f"  note: {note}"
    most, mean = TOLERANCES[found.tolerance]
    said = f"{'PASS' if found.passed else 'FAIL'}: {found.name}; tolerance of a log-probability {most:g} nats, "
    yield f"{said}of their mean {mean:g} ({found.tolerance} weights)"
    if hidden := [check.name for check in found.checks if check.status == "not compared"]:
        yield f"  not compared: {', '.join(hidden)}"
    if found.passed:
        return
    causes = list(dict.fromkeys(check.cause for check in found.checks if check.cause))
    yield f"  cause: {'; '.join(causes) or 'not known'}"
    if found.first is None:
        return
    first = found.first
    ours, theirs = first.tokens
    token = f"{ours!r}" if ours == theirs else f"{ours!r} is {theirs!r}"
    margins = ["unknown" if margin is None else f"{margin:.4f}" for margin in first.margins]
    line = f"  first token that differs: {token}, place {first.position} of {first.where}"
    line += f"; the likeliest token leads by {margins[0]} and {margins[1]}" if margins != ["unknown"] * 2 else ""
    yield line + (f"; {first.cause}" if first.cause else "")
