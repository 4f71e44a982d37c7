"""`hybrid quantize`: a bfloat16 model folder as NVFP4, to be continued when it was interrupted."""

from pathlib import Path
from typing import Literal

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hybrid.cli.terminal import Terminal


def quantize(
    source: str,
    target: str,
    /,
    *,
    format: Literal["modelopt", "compressed-tensors"] = "modelopt",
    only: Literal["experts", "experts+mlp", "all"] = "experts",
) -> None:
    """Write a bfloat16 model folder as NVFP4; the same call continues one that was killed.

    Parameters
    ----------
    source
        A folder in Hugging Face form.
    target
        A folder to make.
    format
        Whose spelling: NVIDIA ModelOpt's or compressed-tensors'.
    only
        What becomes 4-bit: the experts, also the dense feed-forward networks, or also attention.
    """
    from hybrid.gemma.checkpoint.quantize import Job, Quantizer

    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    progress = Progress(*columns, console=Terminal(stderr=True), transient=True)
    with Quantizer(Job(Path(source), Path(target), format, only)) as work, progress:
        shards = work.unfinished
        for number, shard in enumerate(shards, 1):
            size = (Path(source) / shard).stat().st_size
            label = f"{shard} ({number} of {len(shards)})"
            bar = progress.add_task(label, total=size)
            for step in work.steps(shard):
                progress.advance(bar, step)
            progress.remove_task(bar)
        errors = work.finish()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("part")
    table.add_column("relative error", justify="right")
    for part, error in errors.items():
        table.add_row(part, f"{error:.2%}")
    console = Terminal()
    console.print(table)
    console.print(f"{target}: NVFP4 weights as {format} spells them")
