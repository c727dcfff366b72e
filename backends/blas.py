"""The processor for which NumPy's matrix products are made.

OpenBLAS has kernels for each kind of processor and chooses when it is
loaded. One that is newer than the library is taken for a Prescott of 2004,
whose kernels are several times slower. `OPENBLAS_CORETYPE` names another
kind (OpenBLAS, "Runtime variables").
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from backends.processor import CPUINFO, described

VARIABLE = 'OPENBLAS_CORETYPE'
#: What a kind needs of the processor, the fastest first.
KINDS = {
    'SkylakeX': {'avx512f', 'avx512bw', 'avx512cd', 'avx512dq', 'avx512vl'},
    'Haswell': {'avx2', 'fma'},
}
#: Kinds without AVX, for which OpenBLAS takes what it does not know.
OLD_KINDS = {'katmai', 'coppermine', 'northwood', 'prescott', 'generic'}
#: Intel's models with AVX-512 that OpenBLAS 0.3.23 knows (family 6).
KNOWN = {85, 102, 106, 108, 125, 126, 140, 141, 143, 167}


def best_kind(cpuinfo: Path = CPUINFO) -> str | None:
    """Return the fastest kind that this processor can run, if any is."""
    flags = set(described(cpuinfo).get('flags', '').split())
    return next((kind for kind, need in KINDS.items() if need <= flags), None)


def is_new(cpuinfo: Path = CPUINFO) -> bool:
    """Return whether OpenBLAS 0.3.23 does not know this Intel processor."""
    about = described(cpuinfo)
    model = about.get('model', '')
    return (
        about.get('vendor_id') == 'GenuineIntel'
        and about.get('cpu family') == '6'
        and not (model.isdecimal() and int(model) in KNOWN)
        and best_kind(cpuinfo) == 'SkylakeX'
    )


def choose_kind(cpuinfo: Path = CPUINFO) -> None:
    """Name the kind of a new processor, for libraries that load later.

    Changes the environment of this process, unless the user has named a
    kind or NumPy is loaded already.
    """
    if 'numpy' not in sys.modules and is_new(cpuinfo):
        os.environ.setdefault(VARIABLE, best_kind(cpuinfo) or '')


def slow_kind(cpuinfo: Path = CPUINFO) -> str | None:
    """Return the kind that NumPy has chosen, where a better one runs here.

    Loads NumPy.
    """
    import_module('numpy')
    from threadpoolctl import threadpool_info

    for library in threadpool_info():
        kind = library.get('architecture')
        if kind and kind.lower() in OLD_KINDS and best_kind(cpuinfo):
            return str(kind)
    return None
