"""Import MXNet 1.9.1 and 2.0.0b1 under today's Python and NumPy.

MXNet's last release is older than NumPy 1.24. It uses names that NumPy has
removed since, it passes text with NumPy scalars to its C++ code, and it
imports `distutils`, which Python 3.12 removed. Only MXNet's own modules are
mended: each runs with a `__builtins__` of its own, in which

- `import numpy` returns a copy of NumPy's namespace with the removed names,
  so that NumPy itself stays unchanged;
- `from distutils.version import ...` returns two classes that compare
  version numbers;
- `str` writes NumPy scalars inside tuples and lists as before NumPy 2, in
  the modules whose text C++ reads.

The documentation of Python's `exec` allows globals with their own
`__builtins__`. The rest of the process is not affected.

This project calls `import_mxnet()`. For readers who write `import mxnet`
themselves, `enable()` puts a hook into an environment's site-packages,
which runs this file and calls its `install()`.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import os
import re
import sys
import sysconfig
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, cast

#: The name of the `.pth` that `enable` writes.
HOOK = '_d2lbert_mxnet'

# Modules of MXNet 1.9.1 or 2.0.0b1 whose str(...) is read by C++.
WRITES_FOR_CPP = frozenset(
    {
        'mxnet._ctypes.cached_op',
        'mxnet._ctypes.ndarray',
        'mxnet._ctypes.symbol',
        'mxnet.io.io',
        'mxnet.symbol.symbol',
    }
)


def import_mxnet() -> types.ModuleType:
    """Import MXNet, mended for this Python and NumPy, and return it.

    Returns an MXNet that is already imported unchanged. Mends later imports
    of MXNet's submodules too.

    Raises `ModuleNotFoundError` where MXNet is not installed (its `name` is
    `'mxnet'`) or a package that MXNet needs is not, and `OSError` where a
    library that MXNet loads is missing, such as `libquadmath.so.0`.
    """
    if 'mxnet' in sys.modules:
        return importlib.import_module('mxnet')
    install()
    with omp_variables():
        return importlib.import_module('mxnet')


_omp_lock = threading.Lock()


@contextmanager
def omp_variables() -> Iterator[None]:
    """Within this context MXNet and OpenMP read variables that suit them.

    MXNet ends the process where `OMP_NUM_THREADS` is not one number, and
    with more threads than cores it hardly computes. OpenMP's threads take
    the cores from other threads where they do not sleep while they wait.
    One thread at a time is in this context, or the second would take the
    first one's variables for the user's own.
    """
    variables = {'OMP_WAIT_POLICY': 'PASSIVE'}
    with _omp_lock:
        if 'OMP_NUM_THREADS' in os.environ:
            # Not above: the hook runs this file where `backends` is not found
            from backends.cores import num_cores

            variables['OMP_NUM_THREADS'] = str(num_cores())
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


# ---- the builtins of MXNet's modules ---------------------------------


def _call_as(name: str, **fixed: Any) -> Callable[..., Any]:
    """Return a new function that calls NumPy's function `name`.

    MXNet registers overrides by function object, so the old name must be
    another object than the new one.
    """

    def renamed(*args: Any, **kwargs: Any) -> Any:
        import numpy

        return getattr(numpy, name)(*args, **fixed, **kwargs)

    renamed.__doc__ = f'See `numpy.{name}`.'  # MXNet 2 edits docstrings
    return renamed


def _in1d(ar1: Any, *args: Any, **kwargs: Any) -> Any:
    """Flatten the first array and call `numpy.isin`."""
    import numpy

    return numpy.isin(numpy.ravel(ar1), *args, **kwargs)


def _expired(*args: Any, **kwargs: Any) -> Any:
    """Raise, as NumPy's financial functions have since version 1.20."""
    raise RuntimeError(
        'NumPy removed its financial functions in version 1.20: call those '
        'of numpy_financial instead (pip install numpy-financial).'
    )


def _removed_from_numpy() -> dict[str, Any]:
    """Return what MXNet uses and some NumPy from 1.23 on has not, by name."""
    inf, nan = float('inf'), float('nan')
    financial = 'fv ipmt irr mirr nper npv pmt ppmt pv rate'
    return {
        'int': int,
        'float': float,
        'complex': complex,
        'object': object,
        'Inf': inf,
        'PINF': inf,
        'NINF': -inf,
        'NAN': nan,
        'NaN': nan,
        'PZERO': 0.0,
        'NZERO': -0.0,
        'alltrue': _call_as('all'),
        'sometrue': _call_as('any'),
        'product': _call_as('prod'),
        'cumproduct': _call_as('cumprod'),
        'round_': _call_as('round'),
        'row_stack': _call_as('vstack'),
        'trapz': _call_as('trapezoid'),
        'msort': _call_as('sort', axis=0),
        'in1d': _in1d,
        'compat': types.SimpleNamespace(basestring=str),
        **dict.fromkeys(financial.split(), _expired),
    }


@functools.cache
def numpy_for_mxnet() -> types.ModuleType:
    """Return a module with NumPy's names and the removed ones.

    Its names refer to NumPy's own objects, so that types and `isinstance`
    agree. NumPy's `__getattr__` is among them and finds what NumPy imports
    lazily.
    """
    import numpy

    module = types.ModuleType('numpy')
    names = vars(module)
    names.update(_removed_from_numpy())
    names.update(vars(numpy))
    names['bool'] = bool  # NumPy 2 gives this name to a scalar type
    return module


class Version:
    """The part of `distutils`' version classes that MXNet uses."""

    def __init__(self, text: str) -> None:
        self.numbers = [int(part) for part in re.findall(r'\d+', text)]

    def __ge__(self, other: Version) -> bool:
        return self.numbers >= other.numbers


class _TypeOfText(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, str)


class Text(str, metaclass=_TypeOfText):
    """A replacement of `str`: `isinstance` as `str`, a call `write_value`."""

    def __new__(cls, value: object = '') -> str:  # type: ignore[misc]
        return write_value(value)


def write_value(value: object) -> str:
    """Return the text of `value` as `str` wrote it before NumPy 2.

    NumPy 2 writes `(np.int64(3), 4)`, where NumPy 1 wrote `(3, 4)`. MXNet's
    C++ code reads only the latter as a shape.
    """
    text = str(value)
    return str(_without_numpy(value)) if 'np.' in text else text


def _without_numpy(value: Any) -> Any:
    """Return a value with Python's numbers instead of NumPy's."""
    import numpy

    if isinstance(value, tuple):
        return tuple(map(_without_numpy, value))
    if isinstance(value, list):
        return list(map(_without_numpy, value))
    return value.item() if isinstance(value, numpy.generic) else value


def _import(name: str, *args: Any, **kwargs: Any) -> Any:
    """Import a module for one of MXNet's modules, as `__import__` does."""
    if name == 'distutils.version':
        return types.SimpleNamespace(
            LooseVersion=Version, StrictVersion=Version
        )
    module = builtins.__import__(name, *args, **kwargs)
    if module is sys.modules.get('numpy'):
        return numpy_for_mxnet()
    return module


# ---- finding and loading them ----------------------------------------


class MXNetLoader:
    """A loader that gives a module of MXNet its mended builtins.

    `loader`, the original one, executes the module, so that tracebacks stay
    short.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        if spec.name == 'mxnet':
            # A failed `import mxnet` leaves its submodules behind
            for name in list(sys.modules):
                if name.startswith('mxnet.'):
                    del sys.modules[name]
        module = self.loader.create_module(spec) or types.ModuleType(
            spec.name
        )
        mended = dict(vars(builtins), __import__=_import)
        if spec.name in WRITES_FOR_CPP:
            mended['str'] = Text
        vars(module)['__builtins__'] = mended
        return module


class MXNetFinder:
    """A finder for `sys.meta_path` that mends the modules of MXNet."""

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> ModuleSpec | None:
        if name.partition('.')[0] != 'mxnet':
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = MXNetLoader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


def install() -> MXNetFinder:
    """Mend every later import of MXNet, and return the finder.

    Replaces the hook where it is on. A second call changes nothing.
    """
    # By name, because the hook may have loaded this file a second time
    for finder in sys.meta_path:
        if type(finder).__name__ == MXNetFinder.__name__:
            return cast(MXNetFinder, finder)
    finder = MXNetFinder()
    sys.meta_path[:] = [finder] + [
        other
        for other in sys.meta_path
        if getattr(other, '__name__', None) != HOOK
    ]
    return finder


# ---- the hook at the start of an interpreter -------------------------

# A `.pth` runs single lines that begin with `import`. Another import at the
# start would add 2 ms to each start of Python, so this one imports the rest
# when mxnet is asked for, if d2lbert has not been moved or uninstalled.
_PTH = (
    "import sys; sys.meta_path.insert(0, type({hook!r}, (), {{'find_spec': "
    'staticmethod(lambda name, path=None, target=None, mend={mend!a}: '
    "__import__('runpy').run_path(mend)['install']()"
    ".find_spec(name, path, target) if name == 'mxnet' "
    "and __import__('os').path.exists(mend) else None)}}))\n"
)


def enable(site_packages: str | os.PathLike[str] | None = None) -> Path:
    """Mend `import mxnet` in every Python that starts in this environment.

    Writes a `.pth` of one line into `site_packages`, by default that of the
    running interpreter, and returns its path. A second call replaces it. It
    adds less than 1 ms to the start of an interpreter.

    Raises `OSError` where the folder is missing or cannot be written to.
    """
    pth = hook_path(site_packages)
    part = pth.with_suffix('.part')
    line = _PTH.format(hook=HOOK, mend=os.path.abspath(__file__))
    with _writing(pth):
        try:
            part.write_text(line, 'ascii')
            os.replace(part, pth)
        finally:
            with suppress(OSError):
                part.unlink()
    return pth


def disable(site_packages: str | os.PathLike[str] | None = None) -> bool:
    """Undo `enable`, and say whether the hook was there."""
    pth = hook_path(site_packages)
    was_there = pth.exists()
    # An older d2lbert wrote a module too
    with _writing(pth):
        for path in pth.parent.glob(f'{HOOK}.*'):
            path.unlink()
    return was_there


@contextmanager
def _writing(pth: Path) -> Iterator[None]:
    """Say in an `OSError` which file cannot be written, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f'cannot write {pth} ({error.strerror}); use a '
            'virtual environment that you own: python -m venv .venv',
        ) from error


def hook_path(site_packages: str | os.PathLike[str] | None = None) -> Path:
    """Return the path of the `.pth`, which exists where the hook is on."""
    folder = site_packages or sysconfig.get_path('purelib')
    return Path(folder) / f'{HOOK}.pth'
