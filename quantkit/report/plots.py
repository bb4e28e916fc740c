"""The geometry of the report's plots: values to positions in percent, free of any drawing.

Positions are percentages of a plot's width (from the left) and height (from the top), so that one page
serves every screen and letters keep their size. What needs a distance in pixels, such as the side on which
a label finds room, is laid out for the narrowest screen, a phone's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NARROW, HEIGHT = 280.0, 260.0  # pixels of a plot on a phone
LOG_FROM = 2.5  # highest over lowest value from which an axis is logarithmic
STEPS = 12  # colours of a heat map
LEAST_SPAN = 4.0  # highest over lowest value of a heat map's colours: less is no pattern
LABEL, DOT = 13.0, 6.0  # pixels: height and width of a letter, radius of a dot
LETTER_WIDTH = 6.4  # pixels of a character of a machine's name


@dataclass(frozen=True)
class Tick:
    """A marked value of an axis."""

    at: float  # percent
    text: str


@dataclass(frozen=True)
class Axis:
    """A scale from values to percent."""

    low: float
    high: float
    log: bool

    def at(self, value: float) -> float:
        """Percent of the way from low to high; what lies outside stands at the edge."""
        if self.log:
            value = max(value, self.low)
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, part)), 2)

    def ticks(self, text: Callable[[float], str], count: int = 5, unit: float = 1.0) -> list[Tick]:
        """Round values on the axis, about as many as asked, multiples of the unit."""
        values = _log_values(self.low, self.high, count) if self.log else []
        if len(values) < 2:
            values = [value * unit for value in _round_values(self.low / unit, self.high / unit, count)]
        return [Tick(self.at(value), text(value)) for value in values]


@dataclass(frozen=True)
class Mark:
    """A dot of a scatter plot with its letter."""

    key: str  # letter of the weight set
    colour: int
    x: float
    y: float
    top: float  # of the error bar
    bottom: float
    dx: float  # of the letter, pixels
    dy: float
    title: str


@dataclass(frozen=True)
class Point:
    """A weight set to be placed: coordinates in values."""

    key: str
    colour: int
    x: float
    y: float
    error: float
    title: str


def amount_axis(values: Sequence[float]) -> Axis:
    """From zero to a little more than the largest value."""
    return Axis(0.0, max([*values, 0.0]) * 1.06 or 1.0, log=False)


def value_axis(values: Sequence[float]) -> Axis:
    """Around the values, logarithmic where they differ much; zeros of a logarithmic axis stand at its low end."""
    positive = [value for value in values if value > 0]
    if not positive:
        return Axis(0.0, 1.0, log=False)
    low, high = min(positive), max(positive)
    if high / low >= LOG_FROM:
        room = (high / low) ** 0.08 * (2.0 if 0.0 in values else 1.0)
        return Axis(low / room, high * room, log=True)
    room = (high - low) * 0.15 or high * 0.05
    return Axis(max(0.0, low - room) if 0.0 not in values else 0.0, high + room, log=False)


def place(points: Sequence[Point], x: Axis, y: Axis) -> list[Mark]:
    """Dots with their letters on a side where they cover neither dots nor other letters."""
    dots = [(x.at(point.x) * NARROW / 100, (100 - y.at(point.y)) * HEIGHT / 100) for point in points]
    taken = [(left - DOT, top - DOT, left + DOT, top + DOT) for left, top in dots]
    marks = []
    for point, (left, top) in zip(points, dots, strict=True):
        sides = [(13, 0), (0, -14), (-13, 0), (0, 14), (11, -11), (-11, -11), (11, 11), (-11, 11), (24, 0), (-24, 0)]
        boxes = {side: _box(left + side[0], top + side[1]) for side in sides}
        free = (side for side, box in boxes.items() if _inside(box) and not any(_meet(box, other) for other in taken))
        dx, dy = next(free, sides[0])
        taken.append(boxes[(dx, dy)])
        above, below = (100 - y.at(value) for value in (point.y + point.error, point.y - point.error))
        marks.append(
            Mark(point.key, point.colour, x.at(point.x), 100 - y.at(point.y), above, below, dx, dy, point.title)
        )
    return marks


def frontier(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """The path through the points that no other one beats both in size and in value."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, point.y)):
        if not best or point.y < best[-1].y:
            best.append(point)
    return path([x.at(point.x) for point in best], [100 - y.at(point.y) for point in best])


def path(xs: Sequence[float], ys: Sequence[float]) -> str:
    """SVG path data through positions of a 100 × 100 box."""
    steps = [f"{left:g} {top:.2f}" for left, top in zip(xs, ys, strict=True)]
    return "M" + "L".join(steps) if len(steps) > 1 else ""


def spread(tops: Sequence[float], height: float, distance: float = LABEL) -> list[float]:
    """Shifts in pixels that keep labels beside each other's ends apart.

    Args:
        tops: where the labels would stand, percent of the height.
        height: of the plot, pixels.
        distance: least between two labels, pixels.
    """
    order = sorted(range(len(tops)), key=lambda number: tops[number])
    wanted = [tops[number] * height / 100 for number in order]
    placed: list[float] = []
    for top in wanted:
        placed.append(max(top, placed[-1] + distance) if placed else top)
    excess = max(0.0, placed[-1] - height) if placed else 0.0
    for number in range(len(placed) - 1, -1, -1):  # push back up what fell off the lower edge
        limit = placed[number + 1] - distance if number + 1 < len(placed) else placed[number] - excess
        placed[number] = min(placed[number], limit)
    shifts = [0.0] * len(tops)
    for number, top, where in zip(order, wanted, placed, strict=True):
        shifts[number] = round(where - top, 1)
    return shifts


def flag_rows(positions: Sequence[float], texts: Sequence[str]) -> list[tuple[int, bool]]:
    """A row for the label of each vertical line, and whether it stands to the left of its line.

    Labels share a row only where they do so on a phone, too.

    Args:
        positions: of the lines, percent, ascending.
        texts: the labels.
    """
    rows: list[list[tuple[float, float]]] = []
    found = []
    for position, text in zip(positions, texts, strict=True):
        left, width = position * NARROW / 100, len(text) * LETTER_WIDTH + 10
        leftwards = left + width > NARROW
        span = (left - width, left) if leftwards else (left, left + width)
        row = next((n for n, used in enumerate(rows) if all(span[1] <= a or span[0] >= b for a, b in used)), len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(span)
        found.append((row, leftwards))
    return found


def heat_axis(values: Sequence[float]) -> Axis:
    """The logarithmic colour scale of a heat map."""
    positive = [value for value in values if value > 0]
    if not positive:
        return Axis(0.1, 1.0, log=True)
    low, high = min(positive), max(positive)
    if high / low < LEAST_SPAN:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(LEAST_SPAN), middle * math.sqrt(LEAST_SPAN)
    return Axis(low, high, log=True)


def heat_step(axis: Axis, value: float) -> int:
    """A value's colour, from 0 to 11."""
    return min(STEPS - 1, int(axis.at(value) / 100 * STEPS))


def _round_values(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _log_values(low: float, high: float, count: int) -> list[float]:
    """Powers of ten, with 3 or 2 and 5 between them where there is room."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        values = [factor * 10.0**power for power in powers for factor in factors]
        values = [value for value in values if low <= value <= high]
        if len(values) <= count + 1:
            return values
    return values[:: math.ceil(len(values) / (count + 1))]


def _box(x: float, y: float) -> tuple[float, float, float, float]:
    return x - LABEL / 2, y - LABEL / 2, x + LABEL / 2, y + LABEL / 2


def _inside(box: tuple[float, float, float, float]) -> bool:
    return box[0] >= 0 and box[1] >= 0 and box[2] <= NARROW and box[3] <= HEIGHT


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
