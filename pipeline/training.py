"""The run verb of training: a config by path or by the name of a shipped one, to a folder with checkpoints."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from model.errors import BadInput
from model.extras import need
from model.training.config import Config, config_of

CONFIGS = Path(__file__).with_name("configs")


def shipped() -> list[str]:
    """Names of the configs that come with the program."""
    return sorted(p.stem for p in CONFIGS.glob("*.toml"))


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A config file, or a shipped one by its name. Paths in it start where the program is started.

    Args:
      overrides: "table.name=value" in place of what it says.

    Raises:
      BadInput: no such file or name, not TOML, or something in it that cannot be; named.
    """
    place = Path(path)
    if str(path) in shipped() and not place.exists():
        place = CONFIGS / f"{path}.toml"
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        why = getattr(e, "strerror", None) or "not text"
        raise BadInput(f"config {path}: {why}; shipped ones are {', '.join(shipped())}") from None
    return config_of(text, f"config {path}", overrides)


def train(
    config_path: str | Path,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains by a config, or goes on with what `out` holds; under torchrun on every rank.

    Ctrl-C or SIGTERM ends it behind the step at hand, saved; a second one at once.

    Args:
      config_path: TOML file, or a name of `shipped`.
      out: folder for `last.pt`, `untrained.pt` and `progress.jsonl`.
      overrides: "table.name=value".
      resume: False: what `out` holds is written over.
      say: for lines to people.

    Returns:
      what `model.training.run.run` returns.

    Raises:
      BadInput: a config, device, shard set or checkpoint that is refused, or PyTorch missing.
      NotProven: the loss is not finite any more; a checkpoint of the state before it is there.
      KeyboardInterrupt: it was stopped and saved.
    """
    config = read_config(config_path, overrides)
    need("torch", "train run")
    from model.training.run import run

    with _stopping(say) as stop:
        result = run(config, out, resume=resume, say=say, stop=stop)
    if not result["complete"]:
        raise KeyboardInterrupt
    return {
        **result,
        "config": {f.name: dataclasses.asdict(getattr(config, f.name)) for f in dataclasses.fields(config)},
    }


@contextlib.contextmanager
def _stopping(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Whether somebody has asked for an end. Ranks are not asked: they must end at one step, and torchrun ends them."""
    by_itself = os.environ.get("WORLD_SIZE", "1") in ("", "0", "1")  # what is no number is refused by name later
    if not by_itself or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = threading.Event()

    def ask(_number: int, _frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        say("stops behind this step and saves; once more to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def trained(r: dict[str, Any]) -> str:
    """A result of `train` in words."""
    last = r["last"]
    lines = [f"{r['checkpoint']}: {r['step']:,} steps of {r['records']:,} records on {r['device']}"]
    if r["ranks"] > 1:
        lines[0] += f", {r['ranks']} ranks"
    if last:
        lines.append(f"  loss {last['loss']:.5g}, RankMe {last['rankme']:.1f}, {last['pixels_per_s']:,.0f} pixels/s")
    return "\n".join([*lines, f"next: tessera-beam model export {r['checkpoint']} --out m.onnx"])
