"""What every picture is drawn on: matplotlib, which is an extra and loaded when a picture is drawn.

Equal input gives equal bytes (C12): the machine's fonts and the time stay out. Text is written as it is, and
never parsed (C11).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

INK, FAINT = "#222222", "#777777"
_LONGEST_LABEL = 26
_DPI = 120


def sheet(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches and its canvas; nothing global is touched, as pyplot would."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415 - likewise

    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    figure.set_layout_engine("none")  # whatever a matplotlibrc says
    return figure, FigureCanvasAgg(figure)


def heading(figure: Any, left: float, title: str, below: str) -> None:
    """Two lines above the axes that begin at `left`, a share of the width."""
    figure.text(left, 0.945, title, size=13, weight="bold", color=INK)
    figure.text(left, 0.905, below, size=9, color=FAINT)


def png(figure: Any, canvas: Any) -> bytes:
    """The finished figure as a PNG."""
    from matplotlib.font_manager import FontProperties  # noqa: PLC0415 - an extra
    from matplotlib.text import Text  # noqa: PLC0415 - likewise

    for text in figure.findobj(Text):
        # the user's settings may ask for TeX, which runs what a label says
        text.set_usetex(False)
        text.set_parse_math(False)
        font = FontProperties(fname=_font_file(bold=text.get_fontweight() == "bold"))
        font.set_size(text.get_fontsize())
        text.set_fontproperties(font)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _font_file(*, bold: bool = False) -> str:
    """The font that comes with matplotlib."""
    import matplotlib  # noqa: PLC0415 - an extra

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)


@lru_cache(maxsize=4096)
def shown(label: str) -> str:
    """A label that the font can show: other characters as their codes, and no more than fits."""
    from matplotlib.ft2font import FT2Font  # noqa: PLC0415 - an extra

    font = FT2Font(_font_file())
    written = "".join(
        c if c.isprintable() and font.get_char_index(ord(c)) else c.encode("unicode_escape").decode()
        for c in label
    )
    return written if len(written) <= _LONGEST_LABEL else f"{written[: _LONGEST_LABEL - 1]}…"


def legend(axes: Any, entries: Sequence[tuple[str, float, str, str]], title: str, *, top: float) -> None:
    """A legend beside the axes, from `top` down: marker, its size and colour, and text of each line."""
    from matplotlib.legend import Legend  # noqa: PLC0415 - an extra
    from matplotlib.lines import Line2D  # noqa: PLC0415 - likewise

    handles = [
        Line2D([], [], linestyle="", marker=marker, markersize=size, color=colour)
        for marker, size, colour, _ in entries
    ]
    legend = Legend(
        axes,
        handles,
        [text for _, _, _, text in entries],
        title=title,
        loc="upper left",
        bbox_to_anchor=(1.015, top),
        borderaxespad=0.0,
        frameon=False,
        fontsize=8.5,
        title_fontsize=9.5,
        labelspacing=0.35,
        handletextpad=0.4,
        alignment="left",
        labelcolor=INK,
    )
    axes.add_artist(legend)
