"""Progress: what a training says of itself on the way, as lines for people, for programs and for TensorBoard."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from model.errors import BadInput

LINES = "progress.jsonl"
BOARD = "tensorboard"


class Progress:
    """Writes a line of numbers now and then, of rank 0 alone.

    Lines of steps at and behind the one where a training goes on are dropped: they will be written again.
    """

    def __init__(self, folder: Path, step: int, board: bool, say: Callable[[str], None]) -> None:
        """Raises BadInput where `board` is asked for and TensorBoard is not installed."""
        self._path, self._say = folder / LINES, say
        keep = [line for line in read(folder) if line["step"] <= step] if step else []
        part = folder / f".{LINES}.part"
        part.write_text("".join(json.dumps(line) + "\n" for line in keep))
        part.replace(self._path)
        self._board: Any = None
        if board:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise BadInput("[run] tensorboard needs tensorboard: pip install 'tessera-beam[train]'") from None
            self._board = SummaryWriter(str(folder / BOARD), purge_step=step + 1)  # what step says stands already

    def tell(self, numbers: Mapping[str, float]) -> None:
        """One line. `numbers`: step, epoch, loss and its terms, rate, gradient, rankme, pixels_per_s, .."""
        with self._path.open("a") as file:
            file.write(json.dumps(dict(numbers)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._board is not None:
            for name, value in numbers.items():
                if name != "step":
                    self._board.add_scalar(name, value, numbers["step"])
        self._say(line_of(numbers))

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def line_of(numbers: Mapping[str, float]) -> str:
    """A line for people."""
    terms = ", ".join(f"{name} {numbers[name]:.4g}" for name in numbers if name not in _OTHER)
    return (
        f"step {numbers['step']:,} of {numbers['steps']:,}: loss {numbers['loss']:.5g} ({terms}), "
        f"RankMe {numbers['rankme']:.1f}, {numbers['pixels_per_s']:,.0f} px/s, rate {numbers['rate']:.2e}"
    )


_OTHER = ("step", "steps", "epoch", "seen", "loss", "rankme", "pixels_per_s", "rate", "gradient", "seconds")


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training so far; one that was cut off in the middle is none."""
    lines = []
    try:
        text = (folder / LINES).read_text()
    except OSError:
        return []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
