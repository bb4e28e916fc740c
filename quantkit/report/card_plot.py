"""The picture of a card, as SVG: size against divergence of several variants, or one variant's loss by language.

It stands on a ground of its own, since a page shows it as an image and may be light or dark, and holds neither
time nor place: the same figures give the same bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quantkit.report import figures, plots
from quantkit.report.card_facts import Model
from quantkit.report.findings import LANGUAGES

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 84, 24, 52, 56  # pixels: the whole, and the margins of the plot
SCATTER_HEIGHT, BAR = 260, 28
LETTER, LINE = 7.2, 16.0  # pixels of a character of a label, and of its line
GB = 1e9
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))


@dataclass(frozen=True)
class Dot:
    """A variant: its place, its error bar and its label, in pixels."""

    x: float
    y: float
    top: float
    bottom: float
    label: str
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True)
class Bar:
    """A language: its bar, in pixels."""

    y: float
    width: float
    label: str
    text: str


def picture(models: Sequence[Model], ruler: Model) -> str | None:
    """The SVG, or None where one figure alone would be shown.

    Args:
        models: the variants, own ones and those of siblings.
        ruler: one of them that was checked; those whose figures compare with its are drawn.
    """
    shown = [model for model in models if model.is_measured_like(ruler) and model.overall is not None]
    drawn = _scatter(shown) if len(shown) > 1 else _bars(shown[0])
    if drawn is None:
        return None
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("quantkit.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    frame = {"width": WIDTH, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP}
    return environment.get_template("quality.svg").render(**frame, **drawn)


def _scatter(models: Sequence[Model]) -> dict[str, object]:
    sizes = [float(model.nbytes) for model in models]
    losses = [(model.overall or {})["kl_mean"] for model in models]
    errors = [(model.overall or {})["kl_error"] for model in models]
    x, y = plots.amount_axis(sizes), plots.value_axis(losses)
    width, height = WIDTH - LEFT - RIGHT, SCATTER_HEIGHT

    def across(value: float) -> float:
        return round(LEFT + x.at(value) * width / 100, 1)

    def down(value: float) -> float:
        return round(TOP + (100 - y.at(value)) * height / 100, 1)

    places = [(across(size), down(loss)) for size, loss in zip(sizes, losses, strict=True)]
    labels = _labels(places, [model.label for model in models])
    dots = []
    for (left, top), (beside, line, anchor), loss, error, model in zip(
        places, labels, losses, errors, models, strict=True
    ):
        dots.append(Dot(left, top, down(loss + error), down(loss - error), model.label, beside, line, anchor))
    factor, unit = next(one for one in _UNITS if x.high >= one[0])
    scale = " (logarithmic)" if y.log else ""

    def in_units(value: float) -> str:
        return f"{value / factor:.3g}"

    return {
        "title": f"Mean KL divergence from the original, nats per token{scale}",
        "height": TOP + height + BOTTOM,
        "base": TOP + height,
        "x_name": f"size on disk, {unit}",
        "x_ticks": [
            (_on(LEFT, width, tick), tick.text) for tick in x.ticks(lambda v: f"{v / factor:.3g}", unit=factor)
        ],
        "y_ticks": [(round(TOP + (100 - tick.at) * height / 100, 1), tick.text) for tick in y.ticks(figures.small)],
        "dots": dots,
        "bars": [],
    }


def _bars(model: Model) -> dict[str, object] | None:
    assert model.entry is not None
    found = {name: one for name, one in model.entry["metrics"]["languages"].items() if one}
    if len(found) < 2:
        return None
    rows = sorted(found.items(), key=lambda row: (-row[1]["kl_mean"], row[0]))
    axis = plots.amount_axis([one["kl_mean"] for _, one in rows])
    width = WIDTH - LEFT - RIGHT - 80  # the figure stands behind its bar
    height = BAR * len(rows)
    return {
        "title": "Mean KL divergence from the original by language, nats per token",
        "height": TOP + height + BOTTOM,
        "base": TOP + height,
        "x_name": "nats per token",
        "x_ticks": [(_on(LEFT, width, tick), tick.text) for tick in axis.ticks(figures.small)],
        "y_ticks": [],
        "dots": [],
        "bars": [
            Bar(
                TOP + BAR * number,
                round(axis.at(one["kl_mean"]) * width / 100, 1),
                LANGUAGES.get(name, name),
                figures.small(one["kl_mean"]),
            )
            for number, (name, one) in enumerate(rows)
        ],
    }


def _on(start: float, length: float, tick: plots.Tick) -> float:
    return round(start + tick.at * length / 100, 1)


def _labels(places: Sequence[tuple[float, float]], texts: Sequence[str]) -> list[tuple[float, float, str]]:
    """Where each label finds room: beside its dot, above or below it."""
    taken = [_Box(x - 7, y - 7, x + 7, y + 7) for x, y in places]
    chosen = []
    for (x, y), text in zip(places, texts, strict=True):
        width = LETTER * len(text)
        sides = [
            (x + 11, y + 4.5, "start", _Box(x + 9, y - 9, x + 11 + width, y + 9)),
            (x - 11, y + 4.5, "end", _Box(x - 11 - width, y - 9, x - 9, y + 9)),
            (x, y - 12, "middle", _Box(x - width / 2, y - 12 - LINE, x + width / 2, y - 8)),
            (x, y + 22, "middle", _Box(x - width / 2, y + 8, x + width / 2, y + 12 + LINE)),
        ]
        free = (side for side in sides if side[3].is_inside() and not side[3].meets(taken))
        left, top, anchor, box = next(free, sides[0])
        taken.append(box)
        chosen.append((round(left, 1), round(top, 1), anchor))
    return chosen


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, others: Iterable["_Box"]) -> bool:
        return any(
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
            for other in others
        )

    def is_inside(self) -> bool:
        return self.left >= LEFT and self.right <= WIDTH - 4 and self.top >= TOP - 6
