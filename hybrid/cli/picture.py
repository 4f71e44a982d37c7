"""An answer taking shape, as one SVG picture: steps 1, 2, 4, ... of a draft under each other.

The picture names only fonts that systems bring along, so it loads nothing from anywhere.
"""

from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from hybrid.cli.live import Frame, Recording
from hybrid.cli.render import crystallising, edited, printable
from hybrid.deadline import format_duration

WIDTH = 80
THEME = TerminalTheme(
    background=(16, 20, 28),
    foreground=(222, 228, 236),
    normal=[
        (40, 46, 56),
        (240, 113, 120),
        (127, 200, 127),
        (230, 190, 110),
        (110, 168, 240),
        (190, 150, 240),
        (105, 205, 210),
        (222, 228, 236),
    ],
)
_FORMAT = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
    font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
    font-size: {char_height}px;
    line-height: {line_height}px;
    white-space: pre;
}}
.{unique_id}-title {{ font-family: system-ui, sans-serif; font-size: 18px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def picture(recording: Recording, prompt: str) -> str:
    """The SVG of a recorded draft; of its first canvas if there are several."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    console.print(Text("> ", "cyan").append(printable(prompt), "default"))
    console.print()
    console.print(_steps(recording))
    return console.export_svg(
        title="hybrid", theme=THEME, code_format=_FORMAT, unique_id="crystallise"
    )


def chosen_frames(recording: Recording) -> list[Frame]:
    """Steps 1, 2, 4, 8, ... and the last of the first canvas."""
    frames = [frame for frame in recording.frames if frame.step.canvas == 0]
    doubling = [frames[2**power - 1] for power in range(len(frames).bit_length())]
    return doubling if doubling[-1:] == frames[-1:] else [*doubling, frames[-1]]


def _steps(recording: Recording) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1)
    table.add_column(style="dim", justify="right", no_wrap=True)
    for frame in chosen_frames(recording):
        label = f"step {frame.step.step:>2}"
        table.add_row(label, crystallising(frame.step), format_duration(frame.at_s))
    result = recording.result
    if result.draft and result.refinement and result.refinement.edits:
        changes = edited(result.draft.text, result.refinement.edits)
        table.add_row("refined", changes, format_duration(result.timing.total_s))
    return table
