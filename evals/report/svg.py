"""Line charts as inline SVG, without a plotting library: small, themed by CSS variables, and the same bytes every time.

Colours come from the classes ``s0`` to ``s7`` of the page that holds the chart; nothing here names a colour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

PALETTE = 8
"""How many series colours the page defines; further series repeat them with a dashed line."""

_WIDTH, _HEIGHT = 440, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 18, 36


@dataclass(frozen=True)
class Point:
    """One checkpoint on a curve; ``low`` and ``high`` are its interval, if it has one, and ``label`` its tooltip."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Series:
    """The checkpoints of one run.

    Attributes:
        key: Identifies the run, for a page that filters (``data-run``).
        index: Which colour.
        points: By x.
        start: The parent's checkpoint from which the run set out, joined by a dotted line.
        dots: Whether each point is drawn (a training log has too many).
        dashed: Whether the line is dashed.
    """

    key: str
    index: int
    points: tuple[Point, ...]
    start: Point | None = None
    dots: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Segment:
    """A stage's part of the x axis, from ``start`` to ``end``: ``steps`` steps, counted from the stage's own zero."""

    start: float
    end: float
    steps: float
    name: str


@dataclass(frozen=True)
class _Axes:
    x0: float
    x1: float
    y0: float
    y1: float
    log: bool

    def x(self, value: float) -> str:
        return _short(_LEFT + (value - self.x0) / (self.x1 - self.x0) * (_WIDTH - _LEFT - _RIGHT))

    def y(self, value: float) -> str:
        place = (self._scale(value) - self._scale(self.y0)) / (self._scale(self.y1) - self._scale(self.y0))
        return _short(_HEIGHT - _BOTTOM - place * (_HEIGHT - _TOP - _BOTTOM))

    def _scale(self, value: float) -> float:
        return math.log10(max(value, self.y0)) if self.log else value


def chart(
    series: Sequence[Series], segments: Sequence[Segment], *, name: str, x_label: str, log: bool = True
) -> str | None:
    """Draws curves with interval bands.

    The y axis is logarithmic where all values are positive and span more than a factor of 20, unless ``log`` is false.

    Args:
        series: The runs; their values are drawn as they are (scale shares to per cent first).
        segments: The stages along the x axis, one behind the other.
        name: What the chart shows, for screen readers.
        x_label: Text under the x axis.
        log: Whether the y axis may be logarithmic.

    Returns:
        An ``<svg>`` element, or None where no two points differ in x, so that there is no curve to draw.
    """
    points = [point for item in series for point in item.points]
    if len({point.x for point in points}) < 2:
        return None
    axes = _axes(points + [item.start for item in series if item.start], segments, log=log)
    body = [_grid(axes, segments, x_label), _stages(axes, segments)]
    body += [_draw(axes, item) for item in series if item.points]
    head = f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(name)}">'
    return head + "".join(body) + "</svg>"


def _axes(points: Sequence[Point], segments: Sequence[Segment], *, log: bool) -> _Axes:
    xs = [x for segment in segments for x in (segment.start, segment.end)]
    ys = [y for point in points for y in (point.y, point.low, point.high) if y is not None]
    low, high = min(ys), max(ys)
    if log and low > 0 and high / low > 20:
        return _Axes(min(xs), max(xs), low / 1.1, high * 1.1, True)
    pad = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    # A share or a loss that never falls below zero gets no axis below zero.
    bottom = max(low - pad, 0.0) if low >= 0 else low - pad
    return _Axes(min(xs), max(xs), bottom, high + pad, False)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns round numbers (1, 2 or 5 times a power of ten apart) within a range, about ``count`` of them."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.66)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    many = len(powers) > 4
    found = [m * 10.0**p for p in powers for m in ((1,) if many else (1, 2, 5))]
    return [value for value in found if low <= value <= high]


def _tick_text(value: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (10 if suffix == "k" else 1) or (suffix == "k" and value and value % 1000 == 0):
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def _grid(axes: _Axes, segments: Sequence[Segment], x_label: str) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = ['<g class="grid">']
    for value in _log_ticks(axes.y0, axes.y1) if axes.log else ticks(axes.y0, axes.y1, 5):
        y = axes.y(value)
        parts.append(f'<path d="M{_LEFT} {y}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y}" dy=".32em" text-anchor="end">{_tick_text(value)}</text>')
    for segment in segments:
        parts += _segment_ticks(axes, segment, bottom)
    middle = _short((_LEFT + right) / 2)
    text = escape(x_label + (", y on a log scale" if axes.log else ""))
    parts.append(f'<text class="label" x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{text}</text>')
    parts.append(f'<path class="base" d="M{_LEFT} {bottom}H{right}"/></g>')
    return "".join(parts)


def _segment_ticks(axes: _Axes, segment: Segment, bottom: int) -> list[str]:
    """Labels the steps of one stage; its zero is the end of the stage before, and labelled only for the first."""
    width = float(axes.x(segment.end)) - float(axes.x(segment.start))
    parts = []
    steps = [0.0]
    count = max(1, round(width / 60))
    while segment.steps > 0 and len(steps) < 2:  # a narrow stage still gets one number to read its length by
        steps = ticks(0, segment.steps, count)
        count += 1
    for step in steps:
        if step > 0 or segment.start <= axes.x0:
            share = step / segment.steps if segment.steps > 0 else 0
            x = axes.x(segment.start + share * (segment.end - segment.start))
            parts.append(f'<path d="M{x} {bottom}v4"/>')
            parts.append(f'<text x="{x}" y="{bottom + 15}" text-anchor="middle">{_tick_text(step)}</text>')
    return parts


def _stages(axes: _Axes, segments: Sequence[Segment]) -> str:
    """Draws a hairline where each stage begins, and its name over it as far as it fits."""
    parts = ['<g class="stages">']
    for segment in segments:
        left, right = float(axes.x(segment.start)), float(axes.x(segment.end))
        if segment.start > axes.x0:
            parts.append(f'<path d="M{_short(left)} {_TOP - 10}V{_HEIGHT - _BOTTOM}"/>')
        most = max(3, int((right - left) / 5.6))
        name = segment.name if len(segment.name) <= most else segment.name[: most - 1] + "…"
        parts.append(f'<text x="{_short(left + 4)}" y="{_TOP - 4}">{escape(name)}</text>')
    return "".join(parts) + "</g>"


def _draw(axes: _Axes, series: Series) -> str:
    classes = f"series s{series.index % PALETTE}"
    if series.dashed or series.index >= PALETTE:
        classes += " dashed"
    parts = [f'<g class="{classes}" data-run="{escape(series.key)}">']
    banded = [p for p in series.points if p.low is not None and p.high is not None]
    if len(banded) > 1:
        upper = [f"{axes.x(p.x)} {axes.y(p.high if p.high is not None else p.y)}" for p in banded]
        lower = [f"{axes.x(p.x)} {axes.y(p.low if p.low is not None else p.y)}" for p in reversed(banded)]
        parts.append(f'<path class="band" d="M{"L".join(upper + lower)}Z"/>')
    if series.start is not None:
        first = series.points[0]
        start = f"{axes.x(series.start.x)} {axes.y(series.start.y)}"
        parts.append(f'<path class="join" d="M{start}L{axes.x(first.x)} {axes.y(first.y)}"/>')
    if len(series.points) > 1:
        parts.append(f'<path class="line" d="M{"L".join(f"{axes.x(p.x)} {axes.y(p.y)}" for p in series.points)}"/>')
    if series.dots:
        parts += [_dot(axes, point) for point in series.points]
    return "".join(parts) + "</g>"


def _dot(axes: _Axes, point: Point) -> str:
    x, y = axes.x(point.x), axes.y(point.y)
    whisker = ""
    if point.low is not None and point.high is not None:
        whisker = f'<path class="whisker" d="M{x} {axes.y(point.low)}V{axes.y(point.high)}"/>'
    title = f"<title>{escape(point.label)}</title>"
    centre = f'cx="{x}" cy="{y}"'
    return f'<g class="point">{title}{whisker}<circle class="hit" {centre} r="9"/><circle {centre} r="3"/></g>'


def thin(points: Sequence[tuple[int, float]], most: int = 300) -> list[tuple[float, float]]:
    """Returns at most ``most`` points of a long log: the means of runs of neighbours, equally many in each."""
    size = math.ceil(len(points) / most) if points else 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _short(value: float) -> str:
    """Returns a coordinate with one decimal, and no ``-0``."""
    text = f"{value:.1f}"
    return "0" if text in ("-0.0", "0.0") else text.removesuffix(".0")
