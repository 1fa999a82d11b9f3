"""Extras: packages that only some verbs need, asked for with the command that installs them."""

import importlib
import importlib.util
from typing import Any

from model.errors import BadInput

INSTALL = {
    "torch": "pip install 'tessera-beam[train]'",
    "sklearn": "pip install 'tessera-beam[train]'",
    "matplotlib": "pip install 'tessera-beam[train]'",
    "onnxruntime": "pip install 'tessera-beam[cpu]' (or [gpu], never both)",
}


def need(module: str, purpose: str) -> Any:
    """Imports `module`.

    Raises:
      BadInput: it is not installed; the message says what wanted it and how to get it.
    """
    if importlib.util.find_spec(module) is None:
        raise BadInput(f"{purpose} needs {module}, which is not installed: {INSTALL[module]}")
    return importlib.import_module(module)
