"""Compiled programs that are kept on disk, so that a later process need not trace them again.

JAX keeps compiled code, but finds it by the program's text, and writing this text (tracing the
Python function, lowering it) takes longer than loading the code: a third of a short command.  Here
code is found by what determines the text: this package's sources, versions, the function with
everything it closes over, and shapes and types of the arguments.  A function of which not all of
that can be told, such as one of a user's own model file, is compiled as ever.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import pickle
import shutil
import sys
import tempfile
import types
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

_PACKAGE = Path(__file__).resolve().parents[1]
_OURS = (_PACKAGE, _PACKAGE.parent / "models")
_THEIRS = ("jax", "jaxlib", "numpyro", "numpy", "equinox")
# less than half the time to compile; what is made is as fast, within what can be measured
_QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}
_VERSIONS = 3  # of the sources whose programs are kept
UNTOLD = "<untold>"
_folder: Path | None = None
_programs: weakref.WeakSet[Program] = weakref.WeakSet()


def keep_programs(folder: Path | None) -> None:
    """Keep programs in a folder from now on; None: only in this process."""
    global _folder
    _folder = folder


def folder_of_programs() -> Path | None:
    """The folder that programs are kept in, if any."""
    return _folder


def forget_programs() -> None:
    """Free what this process has loaded; it is loaded anew when it is needed."""
    for program in _programs:
        program.forget()


def kept(function: Callable, static: Sequence[str] = ()) -> Program:
    """``jax.jit`` of a pure function whose compiled code later processes find on disk.

        slope = kept(jax.grad(cost))

    Args:
        function: of arrays, without effects.
        static: names of arguments that are not arrays; the program is compiled for each value.
    """
    return Program(function, tuple(static))


class Program:
    """A compiled function: :func:`kept`."""

    def __init__(self, function: Callable, static: tuple[str, ...]) -> None:
        functools.update_wrapper(self, function)
        self._function, self._static = function, frozenset(static)
        self._jitted = jax.jit(function, static_argnames=static or None)
        names = list(inspect.signature(function).parameters) if static else []
        self._static_places = {names.index(name) for name in static}
        self._ready: dict[Any, Callable | None] = {}
        _programs.add(self)

    def forget(self) -> None:
        """Free the programs of this function that the process has loaded."""
        self._ready.clear()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _folder is None:
            return self._jitted(*args, **kwargs)
        fixed = {i: x for i, x in enumerate(args) if i in self._static_places}
        named = {name: x for name, x in kwargs.items() if name in self._static}
        rest = [x for i, x in enumerate(args) if i not in fixed]
        others = {name: x for name, x in kwargs.items() if name not in named}
        leaves, tree = jax.tree.flatten((rest, others))
        if any(isinstance(x, jax.core.Tracer) for x in leaves):
            return self._jitted(*args, **kwargs)
        kinds = tuple(map(_kind, leaves))
        static = tuple(fixed.items()), tuple(sorted(named.items()))
        signature = tree, kinds, static, _double()
        if signature not in self._ready:
            told = repr((_told(self._function), _told(static), str(tree), kinds))

            def flat(*leaves):
                rest, others = jax.tree.unflatten(tree, leaves)
                given = iter(rest)
                places = range(len(fixed) + len(rest))
                every = [fixed[i] if i in fixed else next(given) for i in places]
                return self._function(*every, **others, **named)

            self._ready[signature] = _found(told, flat, leaves)
        run = self._ready[signature]
        return self._jitted(*args, **kwargs) if run is None else run(leaves)


def _found(told: str, flat: Callable, leaves: list) -> Callable | None:
    """A program of arrays from disk, or traced and put there; None where it cannot be kept.

    Args:
        told: what determines it. flat: the function. leaves: its arguments.
    """
    assert _folder is not None
    if UNTOLD in told or " at 0x" in told:  # an address stands for what is not known
        return None
    name = f"{told} {_double()} {jax.default_backend()}"
    path = _folder / _sources() / hashlib.sha256(name.encode()).hexdigest()
    with suppress(Exception):  # it is not there, or of whatever kind a damaged file makes it
        text, results = pickle.loads(path.read_bytes())
        return _called(jax.export.deserialize(bytearray(text)), results)
    places: list = []

    def traced(*leaves):
        found, tree = jax.tree.flatten(flat(*leaves))
        places.append(jax.tree.unflatten(tree, range(len(found))))
        return found

    try:
        program = jax.export.export(jax.jit(traced))(*leaves)
    except Exception:  # not to be exported; or the function raises, and does so again
        return None
    with suppress(Exception):  # a type that cannot be written, a full disk: nothing is lost
        _put(path, pickle.dumps((bytes(program.serialize()), places[0])))
    return _called(program, places[0])


def _called(program: jax.export.Exported, results: Any) -> Callable:
    """The function of flat arguments, with results in the structure of ``results``."""
    call = jax.jit(program.call, **_options())
    tree = jax.tree.structure(results)
    return lambda leaves: jax.tree.unflatten(tree, call(*leaves))


@functools.cache
def _options() -> dict[str, Any]:
    """Arguments of ``jax.jit``: ``_QUICK`` on a CPU, where the compiler knows it."""
    options: dict[str, Any] = {"compiler_options": _QUICK}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, **options).lower(0.0).compile()
    except Exception:  # of another version
        return {}
    return options


def _double() -> bool:
    """Whether JAX computes in double precision."""
    return bool(getattr(jax.config, "jax_enable_x64"))  # noqa: B009  mypy knows no such name


def _kind(leaf: Any) -> tuple:
    """Shape and type of an argument; a Python number is as an array that JAX makes of it."""
    if hasattr(leaf, "dtype"):
        return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)
    return _kind_of_number(type(leaf)(), _double())


@functools.lru_cache(typed=True)
def _kind_of_number(zero: complex, double: bool) -> tuple:
    return (), jnp.result_type(zero), not isinstance(zero, bool)


def _told(x: Any) -> Any:
    """A description that is equal only for values that make the same program, or ``UNTOLD``."""
    if x is None or isinstance(x, bool | int | float | str | bytes | np.generic | np.dtype):
        return type(x).__name__, repr(x)
    if isinstance(x, np.ndarray):
        return "array", x.shape, str(x.dtype), hashlib.sha256(x.tobytes()).hexdigest()
    if isinstance(x, tuple | list):
        return type(x).__name__, [_told(value) for value in x]
    if isinstance(x, dict):
        return "dict", [(_told(key), _told(value)) for key, value in x.items()]
    if isinstance(x, functools.partial):
        return "partial", _told(x.func), _told(x.args), _told(x.keywords)
    if isinstance(x, Program):
        return "kept", _told(x._function)
    if isinstance(x, types.FunctionType):
        return _told_function(x)
    if isinstance(x, types.ModuleType) and _is_known(x):  # closed over by JAX's slopes
        return "module", x.__name__
    if isinstance(x, type) and _is_known(sys.modules.get(x.__module__)):
        return "type", x.__module__, x.__qualname__
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        known = [f for f in dataclasses.fields(x) if f.compare]
        return _told(type(x)), [(f.name, _told(getattr(x, f.name))) for f in known]
    return UNTOLD


def _told_function(function: types.FunctionType) -> Any:
    # not function.__module__, which a wrapper takes from what it wraps
    module = sys.modules.get(function.__globals__.get("__name__", ""))
    if module is None or not _is_known(module) or function.__globals__ is not vars(module):
        return UNTOLD
    code, cells = function.__code__, function.__closure__ or ()
    try:
        closed_over = [_told(cell.cell_contents) for cell in cells]
    except (ValueError, RecursionError):  # an empty cell; a function that closes over itself
        return UNTOLD
    where = module.__name__, code.co_qualname, code.co_firstlineno
    return "function", where, closed_over, _told((function.__defaults__, function.__kwdefaults__))


def _is_known(module: types.ModuleType | None) -> bool:
    """Whether a module's source is among those that the folder of programs is named by."""
    if module is None:
        return False
    if module.__name__.split(".")[0] in _THEIRS:
        return True
    file = Path(getattr(module, "__file__", None) or "/").resolve()
    return any(folder in file.parents for folder in _OURS)


@functools.cache
def _sources() -> str:
    """One word for the sources and versions that a program depends on."""
    found = hashlib.sha256()
    for file in sorted(file for folder in _OURS for file in folder.rglob("*.py")):
        found.update(str(file.relative_to(_PACKAGE.parent)).encode() + file.read_bytes())
    for name in _THEIRS:
        try:
            found.update(f"{name} {version(name)}".encode())
        except PackageNotFoundError:  # an extra
            continue
    found.update(sys.version.encode())
    return found.hexdigest()[:32]


def _put(path: Path, data: bytes) -> None:
    """Write a program; of other sources only the latest are kept."""
    folder = path.parent
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(folder.parent.iterdir(), key=lambda f: f.stat().st_mtime, reverse=True)
        for old in others[_VERSIONS:]:
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as part:
        part.write(data)
    Path(part.name).replace(path)
