"""Colours, fonts and files of a report's figures: each is drawn for a light and for a dark page.

The colours are distinguishable with any colour vision (after Okabe and Ito) and brighter on a dark
background. Series also differ by marker.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler

matplotlib.use("Agg")

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

DPI = 200
MARKERS = "osD^vPX*"


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a page; `colours` are for series, in order."""

    name: str
    background: str
    text: str
    grid: str
    colours: tuple[str, ...]

    @property
    def improved(self) -> str:
        """For wrong drafts that refining made right."""
        return self.colours[2]

    @property
    def worsened(self) -> str:
        """For right drafts that refining made wrong."""
        return self.colours[1]

    def series(self, index: int) -> tuple[str, str]:
        """Colour and marker of a series."""
        return self.colours[index % len(self.colours)], MARKERS[index % len(MARKERS)]

    def on(self, colour: Any) -> str:
        """Text or background colour, whichever has more contrast on a colour (as in WCAG 2)."""
        ground = _luminance(colour) + 0.05

        def contrast(text: str) -> float:
            bright = _luminance(text) + 0.05
            return max(ground, bright) / min(ground, bright)

        return max((self.text, self.background), key=contrast)

    def settings(self) -> Any:
        """For matplotlib."""
        return {
            "figure.facecolor": self.background,
            "axes.facecolor": self.background,
            "savefig.facecolor": self.background,
            "text.color": self.text,
            "axes.labelcolor": self.text,
            "axes.edgecolor": self.grid,
            "axes.prop_cycle": cycler(color=self.colours),
            "xtick.color": self.grid,
            "ytick.color": self.grid,
            "xtick.labelcolor": self.text,
            "ytick.labelcolor": self.text,
            "grid.color": self.grid,
            "grid.alpha": 0.3,
            "grid.linewidth": 0.6,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.titlelocation": "left",
            "svg.hashsalt": self.name,  # the same file for the same figure
            "legend.frameon": False,
            "legend.fontsize": 8,
        }


def _luminance(colour: Any) -> float:
    """Relative luminance of an sRGB colour, 0 to 1."""
    values = np.array(to_rgb(colour))
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


THEMES = (
    Theme(
        "light", "#ffffff", "#1c232b", "#aeb7c0",
        ("#0072b2", "#d55e00", "#00845f", "#9b4f96", "#a87900", "#3f9fd8", "#882255", "#5b6b7a"),
    ),
    Theme(
        "dark", "#14181d", "#e4e8ec", "#56616c",
        ("#5cb3ee", "#ff8f4f", "#3fcf9f", "#d99ad6", "#e6bb4f", "#a5dcf7", "#ee8aa8", "#aab7c4"),
    ),
)  # fmt: skip
Drawing = Callable[[Figure, Theme], None]


def draw(drawing: Drawing, size: tuple[float, float], file: Path) -> list[Path]:
    """A figure for light and dark pages, as `NAME-light.png` and `NAME-dark.png`; `size` in inches.

    Beside each PNG is the same figure as SVG, which is not returned.
    """
    written = []
    for theme in THEMES:
        with matplotlib.rc_context(theme.settings()):
            figure = Figure(figsize=size, layout="constrained")
            drawing(figure, theme)
            path = file.with_name(f"{file.name}-{theme.name}.png")
            figure.savefig(path, dpi=DPI, metadata={"Software": None})
            figure.savefig(path.with_suffix(".svg"), dpi=DPI, metadata={"Date": None})
            written.append(path)
    return written


def panels(figure: Figure, names: list[str], columns: int = 5, share_y: bool = True) -> list[Any]:
    """Small axes with shared scales, a name above each, row by row."""
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    grid = figure.subplots(rows, columns, sharex=True, sharey=share_y, squeeze=False)
    axes = list(grid.flat)
    for one, name in zip(axes, names, strict=False):
        one.set_title(name)
    for unused in axes[len(names) :]:
        unused.set_visible(False)
    for above, below in zip(axes[-2 * columns : -columns], axes[-columns:], strict=False):
        if not below.get_visible():  # or its scale would have no numbers
            above.tick_params("x", labelbottom=True)
    return axes[: len(names)]


def milliseconds(axes: Any, direction: str = "x") -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5, or closer where it is short."""
    getattr(axes, f"set_{direction}scale")("log")
    axis = getattr(axes, f"{direction}axis")
    low, high = getattr(axes, f"get_{direction}lim")()
    close = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if high < 12 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(base=10, subs=close))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(LogLocator(base=10, subs=()))
