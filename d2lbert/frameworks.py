"""The frameworks: what each is called, drawn with and installed by.

A framework that `backends` implements has one entry here. Importing this
module imports no framework, and not even NumPy.
"""

from __future__ import annotations

import os
import re
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from d2lbert.errors import BackendsError, InputError, RunError, check_choice

if TYPE_CHECKING:
    from backends.base import Backend


#: A number of threads.
COUNT = re.compile(' *[1-9][0-9]{0,2} *')


class Framework(NamedTuple):
    """A framework.

    `name`: of its backend, its tab, its extra and the package to import;
    `label`: how its authors write it; `color`: of its curves; `recipe`: the
    name of its tab's recipe. `probe`: Python code for `d2lbert doctor`, which
    imports the framework as `framework` and counts its GPUs as `gpus`;
    `reinstall`: the command that repairs its installation; `counts`: a
    pattern of the environment variables that must be a number of threads;
    `environment`: variables with which a process that trains should begin,
    each as `NAME=value`.
    """

    name: str
    label: str
    color: str
    recipe: str
    probe: str
    reinstall: str
    counts: str = ''
    environment: tuple[str, ...] = ()

    @property
    def install(self) -> str:
        """The command that installs it, in a clone of d2lbert."""
        return f"pip install '.[{self.name}]'"


#: All frameworks by name, in the order of `backends.names()`.
FRAMEWORKS = {
    framework.name: framework
    for framework in (
        Framework(
            'jax',
            label='JAX',
            color='#2b8a3e',
            recipe='corrected',
            probe='import jax as framework, flax, optax; '
            'gpus = sum(d.platform == "gpu" for d in framework.devices())',
            reinstall='pip install --force-reinstall jax flax',
            # XLA asks for new memory for each micro-batch: Linux gives it in
            # large pages then, which takes a fraction of the time
            environment=('GLIBC_TUNABLES=glibc.malloc.hugetlb=1',),
        ),
        Framework(
            'mxnet',
            label='MXNet',
            color='#1f77b4',
            recipe='mxnet',
            probe='from backends import mxnet_import; '
            'framework = mxnet_import.import_mxnet(); '
            'gpus = framework.context.num_gpus()',
            reinstall='pip install --force-reinstall --no-deps mxnet==1.9.1',
            # It aborts for other text, and hangs for 0 and for too many
            counts='MXNET_.*NTHREADS',
        ),
        Framework(
            'torch',
            label='PyTorch',
            color='#d9480f',
            recipe='pytorch',
            probe='import torch as framework; '
            'gpus = framework.cuda.device_count()',
            reinstall='pip install --force-reinstall torch',
        ),
    )
}


class Tab(Protocol):
    """A tab: the module `d2lbert.mxnet` or `d2lbert.torch`."""

    BACKEND: Backend
    BERTModel: type[Any]


def load_tab(backend: str) -> Tab:
    """Return the tab of a backend.

    Raises `InputError` for an unknown name, and what `backends.load` raises.
    """
    check_backend(backend)
    check_package()
    check_process()
    check_counts(FRAMEWORKS[backend].counts)
    import backends

    backends.load(backend)
    return cast(Tab, import_module(f'd2lbert.{backend}'))


def check_backend(name: str) -> None:
    """Raise `InputError` for anything but the name of a backend."""
    check_choice('backend', name, FRAMEWORKS)


def label_of(name: str) -> str:
    """Return the label of a framework, and any other name as it is."""
    return FRAMEWORKS[name].label if name in FRAMEWORKS else name


def check_package() -> None:
    """Raise `BackendsError` where another `backends` hides d2lbert's own.

    Imports nothing, so that no code of the other one runs.
    """
    ours = Path(__file__).resolve().parents[1] / 'backends'
    spec = find_spec('backends') or ModuleSpec('backends', None)
    folders = spec.submodule_search_locations or ()
    if ours not in (Path(folder).resolve() for folder in folders):
        found = spec.origin or ', '.join(folders) or 'nothing'
        raise BackendsError(
            f'import backends finds {found}, but the package backends of '
            f'd2lbert is expected at {ours}: rename what hides it, run from '
            'another folder, or install d2lbert again'
        )


def check_counts(names: str) -> None:
    """Raise `InputError` for a variable that is no number of threads."""
    for name, value in os.environ.items():
        if re.fullmatch(names, name) and not COUNT.fullmatch(value):
            raise InputError(
                f'the environment variable {name} is {value!r}: expected a '
                'whole number from 1 to 999, or unset it'
            )


@cache
def check_process() -> None:
    """Raise an error where a framework would end this process.

    MKL does so where the current folder is gone. OpenMP and MXNet do so
    where they cannot start threads; on C cores MXNet has up to 10 + 4 C.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(
            f'the current folder cannot be found ({error.strerror}): change '
            'to another folder'
        ) from error
    num_cores = os.cpu_count() or 1
    if hasattr(os, 'sched_getaffinity'):
        num_cores = len(os.sched_getaffinity(0))
    num_threads = 16 + 4 * num_cores
    done, started = Event(), []
    try:
        for _ in range(num_threads):
            thread = Thread(target=done.wait)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise RunError(
            f'the frameworks need up to {num_threads} threads, and the '
            f'system does not allow them ({error}): raise the limit of this '
            "user's processes (ulimit -u), or end other programs"
        ) from error
    finally:
        done.set()
        for thread in started:
            thread.join()
