"""The figures of a report: losses, cosine and weights over steps, and the forget-utility frontier.

Colors are Okabe and Ito's (2008), which color-blind readers tell apart; runs beyond the palette
differ in dashes and markers too. Every function returns a figure or None where nothing was logged.
"""

import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from .runs import Comparison, Model, Run

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "v", "p", "h", "<", ">")
INK, GROUND = "#20262E", "#FEFEFE"  # of text and under it; a page puts its own in their place
FAINT = "#8A929C"
NEAR = 10.0  # points between a mark and its label; farther ones get a line

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "path",  # looks the same where the font is not installed
}

Floats = npt.NDArray[np.float64]
Series = Mapping[int, float | None]


class Spread(NamedTuple):
    """One model made several times, from several seeds."""

    name: str
    kind: str  # "target", "gold" or "method"
    values: Sequence[tuple[float, float]]  # what lies on the two axes, of each seed


def figures(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> dict[str, Figure]:
    """Every figure that the runs have data for, by the name of its file."""
    with mpl.rc_context(STYLE):
        frontiers = {f"frontier-{c.benchmark}": frontier(c, runs) for c in comparisons}
        drawn = {
            **frontiers,
            "losses": losses(runs),
            "cosine": cosine(runs),
            "weights": weights(runs),
        }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def losses(runs: Sequence[Run]) -> Figure | None:
    """Each objective's loss over steps, one panel per objective, one line per run."""
    return _panels(runs, "loss", "loss (nats)")


def weights(runs: Sequence[Run]) -> Figure | None:
    """Each objective's weight over steps, for the runs in which a weight moves."""
    moving = [run for run in runs if any(_moves(run.series(n)) for n in _names([run], "weight"))]
    return _panels(runs, "weight", "weight", shown=moving)


def cosine(runs: Sequence[Run]) -> Figure | None:
    """The cosine between the gradients of forget and retain: below 0 they fight."""
    lines = {index: run.series("train/cosine") for index, run in enumerate(runs)}
    if not any(lines.values()):
        return None
    figure = Figure(figsize=(9, 3.6))
    axes = figure.add_subplot()
    for index, line in lines.items():
        _draw_line(axes, line, index, runs[index].label)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set(title="Do forgetting and retaining agree?", xlabel="step", ylim=(-1.05, 1.05))
    axes.set_ylabel("cosine of the gradients")
    _legend(figure, axes)
    return figure


def frontier(comparison: Comparison, runs: Sequence[Run]) -> Figure | None:
    """What is kept over what is still remembered: one point per model, the way there behind it."""
    axis_names = frontier_metrics(comparison)
    if axis_names is None:
        return None
    forget, keep = axis_names
    figure = Figure(figsize=(7.5, 5.4))
    axes = figure.add_subplot()
    place = {run.folder: index for index, run in enumerate(runs)}
    points = []
    for model in comparison.models:
        x, y = model.metrics.get(forget), model.metrics.get(keep)
        if x is None or y is None:
            continue
        index = place[model.folder]
        if model.kind == "method":
            _draw_path(axes, runs[index], comparison.benchmark, (forget, keep), index)
        _draw_point(axes, model.kind, (x, y), index)
        points.append((model.name, (x, y)))
    if not points:
        return None
    for model in comparison.of_kind("gold"):
        _draw_gold_lines(axes, model, forget, keep)
    axes.set(xlabel=_titled(comparison, forget), ylabel=_titled(comparison, keep))
    axes.set_title(f"{comparison.benchmark}: what is kept over what is still remembered")
    axes.margins(0.12)
    _place_labels(figure, axes, points)
    return figure


def trade_off(points: Sequence[Spread], x_label: str, y_label: str) -> Figure | None:
    """The frontier over seeds: the mean of each model, its standard deviation as a cross."""
    if not points:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 6.5))
        axes = figure.add_subplot()
        labelled = []
        methods = [point for point in points if point.kind == "method"]
        for point in points:
            xs, ys = zip(*point.values, strict=True)
            center = (mean(xs), mean(ys))
            index = methods.index(point) if point in methods else 0
            if len(point.values) > 1:
                color = COLORS[index % len(COLORS)] if point in methods else INK
                spread = {"yerr": stdev(ys), "xerr": stdev(xs)}
                axes.errorbar(*center, **spread, color=color, alpha=0.45, linewidth=1, zorder=1)
            _draw_point(axes, point.kind, center, index)
            if point.kind == "gold":
                axes.axvline(center[0], color=FAINT, linewidth=1, linestyle=":", zorder=0)
                axes.axhline(center[1], color=FAINT, linewidth=1, linestyle=":", zorder=0)
            labelled.append((point.name, center))
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set_title("what is kept over what is forgotten: mean and spread over seeds")
        axes.margins(0.12)
        _place_labels(figure, axes, labelled)
    return figure


def frontier_metrics(comparison: Comparison) -> tuple[str, str] | None:
    """The two metrics of the frontier: what is forgotten, and what is kept."""
    known = list(dict.fromkeys(name for model in comparison.models for name in model.metrics))
    forget = _first([n for n in known if n.startswith("forget/")], ["forget/rouge"], comparison)
    keep = _first(
        [n for n in known if n == "model_utility" or n.startswith("retain/")],
        ["model_utility", "retain/rouge"],
        comparison,
    )
    return (forget, keep) if forget and keep else None


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `figure` as SVG and PNG on white."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.svg").write_text(svg(figure, name, background="white"), encoding="utf-8")
    figure.savefig(folder / f"{name}.png", dpi=150, facecolor="white")


def svg(figure: Figure, name: str, *, background: str = "none") -> str:
    """The figure as an <svg> element; `name` keeps its ids apart from those of other figures."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", facecolor=background, metadata={"Date": None})
    drawn = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    return drawn[drawn.index("<svg") :]


def themed_svg(figure: Figure, name: str) -> str:
    """The figure for a page that sets --ink and --ground, so that it is light or dark with it."""
    drawn = svg(figure, name).replace(INK.lower(), "var(--ink)")
    return drawn.replace(GROUND.lower(), "var(--ground)")


def _panels(
    runs: Sequence[Run], quantity: str, label: str, *, shown: Sequence[Run] | None = None
) -> Figure | None:
    """One panel for each `train/<objective>/<quantity>`, two in a row, with one common legend."""
    shown = runs if shown is None else shown
    names = _names(shown, quantity)
    if not names:
        return None
    rows, columns = math.ceil(len(names) / 2), min(2, len(names))
    figure = Figure(figsize=(4.5 * columns + (4.5 if columns == 1 else 0), 3.4 * rows + 0.4))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for axes, name in itertools.zip_longest(panels, names):
        if name is None:
            axes.set_visible(False)
            continue
        lines = {runs.index(run): run.series(name) for run in shown}
        for index, line in lines.items():
            _draw_line(axes, line, index, runs[index].label)
        axes.set(title=name.split("/")[1], xlabel="step", ylabel=label)
        _compress(axes, [value for line in lines.values() for value in line.values()])
    _legend(figure, *panels)
    return figure


def _names(runs: Sequence[Run], quantity: str) -> list[str]:
    """The `train/<objective>/<quantity>` that were logged; forget, then retain, then others."""
    pattern = re.compile(rf"train/[^/]+/{quantity}")
    found = {
        name for run in runs for line in run.records for name in line if pattern.fullmatch(name)
    }
    order = [f"train/forget/{quantity}", f"train/retain/{quantity}"]
    return [n for n in order if n in found] + sorted(found - set(order))


def _moves(line: Series) -> bool:
    values = [value for value in line.values() if value is not None]
    return bool(values) and max(values) - min(values) > 1e-6 * max(map(abs, values))


def _draw_line(axes: Axes, line: Series, index: int, label: str) -> None:
    if not line:
        return
    steps = np.array(list(line))
    values = np.array([math.nan if value is None else value for value in line.values()])
    color, dashes = COLORS[index % len(COLORS)], DASHES[index // len(COLORS) % len(DASHES)]
    if len(steps) > 50:  # too dense to read: a moving mean, over the faint raw line
        axes.plot(steps, values, alpha=0.15, linewidth=0.7, color=color)
        values = _moving_mean(values, width=len(steps) // 25)
    marker = "o" if len(steps) <= 20 else ""
    axes.plot(
        *(steps, values),
        label=label,
        color=color,
        linestyle=dashes,
        linewidth=1.8,
        marker=marker,
        markersize=4,
    )


def _moving_mean(values: Floats, *, width: int) -> Floats:
    """The mean of the `width` values around each place, of those that are defined."""
    window, known = np.ones(width), ~np.isnan(values)
    counts = np.convolve(known, window, mode="same")
    sums = np.convolve(np.where(known, values, 0.0), window, mode="same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)


def _compress(axes: Axes, values: Sequence[float | None]) -> None:
    """Use a symmetric logarithm where one diverging run would flatten all others."""
    sizes = [abs(value) for value in values if value]
    if sizes and max(sizes) > 20 * median(sizes):
        axes.set_yscale("symlog", linthresh=2 * median(sizes))
        axes.set_ylabel(f"{axes.get_ylabel()}, symmetric log")


def _legend(figure: Figure, *panels: Axes) -> None:
    lines: dict[str, Artist] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        lines |= dict(zip(labels, handles, strict=True))
    columns = max(1, min(len(lines), 80 // max(4 + len(label) for label in lines)))
    figure.legend(
        handles=list(lines.values()), labels=list(lines), loc="outside lower center", ncols=columns
    )


def _draw_path(axes: Axes, run: Run, benchmark: str, metrics: tuple[str, str], index: int) -> None:
    """The evaluations during training: how the run came to where it is."""
    forget, keep = (run.series(f"eval/{benchmark}/{metric}") for metric in metrics)
    pairs = [(forget[step], keep[step]) for step in forget if step in keep]
    known = np.array([pair for pair in pairs if None not in pair], dtype=float).reshape(-1, 2)
    color = COLORS[index % len(COLORS)]
    axes.plot(*known.T, color=color, linewidth=1, alpha=0.45, marker=".", markersize=3, zorder=1)


def _draw_point(axes: Axes, kind: str, point: tuple[float, float], index: int) -> None:
    if kind == "method":
        color, marker, size = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)], 10
    else:
        color, marker, size = (INK, "D", 9) if kind == "target" else (INK, "*", 17)
    axes.plot(
        *point,
        color=color,
        marker=marker,
        markersize=size,
        markeredgecolor=GROUND,  # keeps apart what lies on top of each other
        linestyle="",
        zorder=3 if kind == "method" else 2,
    )


def _draw_gold_lines(axes: Axes, gold: Model, forget: str, keep: str) -> None:
    x, y = gold.metrics.get(forget), gold.metrics.get(keep)
    if x is not None and y is not None:
        axes.axvline(x, color=FAINT, linewidth=1, linestyle=":", zorder=0)
        axes.axhline(y, color=FAINT, linewidth=1, linestyle=":", zorder=0)


def _titled(comparison: Comparison, metric: str) -> str:
    better = {"higher": "higher is better", "lower": "lower is better", "gold": "near gold is best"}
    direction = better.get(comparison.directions.get(metric, ""))
    return f"{metric}  ({direction})" if direction else metric


def _first(names: list[str], wanted: Sequence[str], comparison: Comparison) -> str | None:
    """The first of `wanted` that is there, else a headline metric, else any."""
    order = [*wanted, *comparison.headline, *names]
    return next((name for name in order if name in names), None)


def _place_labels(
    figure: Figure, axes: Axes, points: Sequence[tuple[str, tuple[float, float]]]
) -> None:
    """Write each name beside its point, where it covers no point, name or, if possible, path."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the panel stays where labels are measured
    pixels = [axes.transData.transform(point) for _, point in points]
    taken = [Bbox.from_extents(x - 9, y - 9, x + 9, y + 9) for x, y in pixels]
    paths = [axes.transData.transform(line.get_xydata()) for line in axes.lines]
    crossed = np.concatenate([_dotted(path) for path in paths])
    panel = axes.get_window_extent()
    for name, point in points:
        label = axes.annotate(name, point, (0, 0), textcoords="offset points", fontsize=10)
        label.set_path_effects([withStroke(linewidth=3, foreground=GROUND)])  # over paths
        costs: dict[tuple[float, float], float] = {}
        for offset in _offsets():
            _move(label, offset)
            box = label.get_window_extent().padded(2)
            on_paths = 10.0 * box.count_contains(crossed)  # worth far less than to cover a name
            costs[offset] = _cost(box, taken, panel) + on_paths
            if costs[offset] == 0:
                break
        chosen = min(costs, key=costs.__getitem__)
        _move(label, chosen)
        taken.append(label.get_window_extent().padded(2))
        if math.hypot(*chosen) > NEAR:
            leader = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.7}
            axes.annotate("", point, chosen, textcoords="offset points", arrowprops=leader)


def _dotted(path: Floats) -> Floats:
    """Ten places on each stretch of a path, [N, 2] pixels; none for a point."""
    starts, ends = path[:-1, None], path[1:, None]
    return (starts + (ends - starts) * np.linspace(0, 1, 10)[:, None]).reshape(-1, 2)


def _offsets() -> Iterator[tuple[float, float]]:
    """Where a label may stand, in points from its point; the nearest first."""
    for radius in (NEAR, 20, 32, 46, 62, 80):
        for degrees in (0, 180, 270, 90, 215, 145, 325, 35):
            angle = math.radians(degrees)
            yield round(radius * math.cos(angle), 3), round(radius * math.sin(angle), 3)


def _move(label: Annotation, offset: tuple[float, float]) -> None:
    x, y = offset
    label.set_horizontalalignment("left" if x > 1 else "right" if x < -1 else "center")
    label.set_verticalalignment("center" if abs(x) > 1 else "bottom" if y > 0 else "top")
    label.xyann = offset


def _cost(box: Bbox, taken: Sequence[Bbox], panel: Bbox) -> float:
    """The area in pixels of a label that lies on something or outside the panel."""
    covered = [Bbox.intersection(box, other) for other in taken]
    inside = Bbox.intersection(box, panel)
    outside = box.width * box.height - (inside.width * inside.height if inside else 0)
    return outside + sum(part.width * part.height for part in covered if part)
