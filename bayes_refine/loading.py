"""Load models by name or by path: ``load_model("still")``, ``load_model("my_model.py")``.

Models are plain files, not a sub-package.  In the wheel they are data in ``bayes_refine/models``.
In a checkout, installed as editable or not at all, they are in ``models/`` beside the package.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from .util.errors import InputError

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = (_PACKAGE / "models", _PACKAGE.parent / "models")
_RUN: dict[Path, None] = {}


def model_names() -> list[str]:
    """Names that :func:`load_model` knows, sorted."""
    return [stem for stem in _stems() if not stem.startswith("_")]


def load_model(name_or_path: str | Path) -> Callable[..., Any]:
    """The NumPyro program ``model`` of a file, given the file's path or a model's name.

        model = load_model("still")
        mine = load_model("my_model.py")

    Args:
        name_or_path: a path if it ends in ``.py``, else a name of :func:`model_names`, which is
            looked for in the package, then beside it.

    Raises:
        InputError: there is no such model, its file does not run, or it defines no callable
            ``model``.
    """
    path = _path_of(name_or_path, model_names())
    model = getattr(_executed(path), "model", None)
    if not callable(model):
        raise InputError(f"{path} defines no callable named 'model'; write def model(obs, priors)")
    return model


def load_file(name_or_path: str | Path) -> Any:
    """The module of a model's file, for a model that takes pieces from another model.

        still = load_file("still")
        model = functools.partial(still.model, errors=still.perfect)

    Args:
        name_or_path: as for :func:`load_model`; a name may begin with an underscore, which marks a
            file with pieces and without a model.

    Raises:
        InputError: there is no such file, or it does not run.
    """
    return _executed(_path_of(name_or_path, _stems()))


def needs_metadata(name_or_path: str | Path) -> bool:
    """Whether a model uses ``obs.metadata``: its file then has the line ``METADATA = True``.

    Raises:
        InputError: as of :func:`load_file`.
    """
    return bool(getattr(load_file(name_or_path), "METADATA", False))


def executed_files() -> tuple[Path, ...]:
    """Files that were run as models so far; other processes run them before they unpickle one."""
    return tuple(_RUN)


def _stems() -> list[str]:
    return sorted({file.stem for folder in _FOLDERS for file in folder.glob("*.py")})


def _path_of(name_or_path: str | Path, names: list[str]) -> Path:
    if not str(name_or_path).endswith(".py"):
        return _find(str(name_or_path), names)
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(f"no model file {path}; models by name: {', '.join(model_names())}")
    return path.resolve()


def _executed(path: Path) -> Any:
    return _execute(path, path.stat().st_mtime_ns)


def _find(name: str, names: list[str]) -> Path:
    if name in names:
        found = next(f for folder in _FOLDERS if (f := folder / f"{name}.py").is_file())
        return found.resolve()
    raise InputError(
        f"no model named {name!r}; there are: {', '.join(model_names()) or 'none'}"
        " (a model of your own is given as a path ending in .py)"
    )


@lru_cache
def _execute(path: Path, written: int) -> Any:
    """Run a file as a module, which is put into ``sys.modules`` first for dataclasses and pickle.

    A file ``written`` at one time (mtime, ns) is run once, so that the same model is the same
    object: compiled code belongs to the object.
    """
    name = f"bayes_refine_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the path ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        what = f"{type(error).__name__}: {getattr(error, 'msg', error)}"
        where = f"{path}, line {_line(error, path)}"
        raise InputError(f"{where}: the model does not run, {what}") from error
    _RUN[path] = None
    return module


def place_in_model(error: BaseException) -> str | None:
    """File and line in a user's own model where an exception was raised; None if elsewhere."""
    for path in _RUN:
        if path.parent not in _FOLDERS and isinstance(error, Exception):
            line = _line(error, path)
            if line is not None:
                return f"{path}, line {line}"
    return None


def _line(error: Exception, path: Path) -> int | None:
    """The line of a file where an error is, or where it was raised."""
    if isinstance(error, SyntaxError):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)
