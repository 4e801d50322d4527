"""omnirouter: speech recognition with sparse mixture-of-experts encoders (arXiv 2507.05724).

    import omnirouter
    print(omnirouter.load("path/to/checkpoint").transcribe("talk.flac").text)

Names are imported when they are first used: importing the package loads no torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnirouter.config import PRESETS, ModelConfig
    from omnirouter.model import CTCEncoder
    from omnirouter.serve.load import load

    __version__: str

__all__ = ["PRESETS", "CTCEncoder", "ModelConfig", "__version__", "load"]

# onnxruntime reads this when it is imported; without it, it tells its makers of each session
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "CTCEncoder": "omnirouter.model",
    "ModelConfig": "omnirouter.config",
    "PRESETS": "omnirouter.config",
    "load": "omnirouter.serve.load",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("omnirouter")
        except PackageNotFoundError:  # run from its source folder without being installed
            return "0+source"
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
