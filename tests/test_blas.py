"""Which processor NumPy's matrix products are made for."""

import os

import pytest

from backends import blas
from helpers import OLDEST_KIND, finish, python

AVX2 = 'fpu sse2 avx2 fma'
AVX512 = f'{AVX2} avx512f avx512bw avx512cd avx512dq avx512vl'


@pytest.fixture
def processor(tmp_path):
    """Describes a processor as Linux does."""

    def processor(vendor='GenuineIntel', model=207, flags=AVX512, family=6):
        one = (
            f'vendor_id\t: {vendor}\ncpu family\t: {family}\n'
            f'model\t\t: {model}\nmodel name\t: A 100\nflags\t\t: {flags}\n'
        )
        path = tmp_path / 'cpuinfo'
        path.write_text(f'{one}\n{one}')
        return path

    return processor


@pytest.mark.parametrize(
    ('about', 'kind', 'is_new'),
    [
        ({}, 'SkylakeX', True),
        ({'model': 143}, 'SkylakeX', False),
        ({'flags': AVX2}, 'Haswell', False),
        ({'flags': 'fpu sse2'}, None, False),
        ({'vendor': 'AuthenticAMD'}, 'SkylakeX', False),
    ],
)
def test_kind_of_a_processor(processor, about, kind, is_new):
    cpuinfo = processor(**about)
    assert blas.best_kind(cpuinfo) == kind
    assert blas.is_new(cpuinfo) == is_new


def test_a_system_that_does_not_describe_its_processor(tmp_path):
    assert blas.best_kind(tmp_path / 'cpuinfo') is None
    assert not blas.is_new(tmp_path / 'cpuinfo')


CHOOSE = """
import os, sys
from pathlib import Path
from backends import blas
blas.choose_kind(Path(sys.argv[1]))
print(os.environ.get('OPENBLAS_CORETYPE'), 'numpy' in sys.modules)
"""


@pytest.mark.parametrize(
    ('model', 'before', 'kind'),
    [(207, {}, 'SkylakeX'), (143, {}, None), (207, {'own': 'Zen'}, 'Zen')],
)
def test_the_kind_is_named_before_numpy_loads(
    processor, monkeypatch, model, before, kind
):
    monkeypatch.delenv(blas.VARIABLE, raising=False)
    own = {blas.VARIABLE: before['own']} if before else {}
    done = finish(python(CHOOSE, processor(model=model), **own))
    assert done == (0, f'{kind} False\n', '')


def test_nothing_is_named_after_numpy_has_loaded(processor, monkeypatch):
    monkeypatch.delenv(blas.VARIABLE, raising=False)
    done = finish(python(f'import numpy\n{CHOOSE}', processor()))
    assert done == (0, 'None True\n', '')
    assert blas.VARIABLE not in os.environ


@pytest.mark.skipif(not blas.best_kind(), reason='this processor has no AVX2')
def test_a_slow_kind_is_noticed():
    code = 'from backends import blas; print(blas.slow_kind())'
    slow = finish(python(code, **{blas.VARIABLE: 'Prescott'}))
    if slow.out == 'None\n':
        pytest.skip("NumPy's library is not OpenBLAS")
    assert slow == (0, f'{OLDEST_KIND}\n', '')
    fast = finish(python(code, **{blas.VARIABLE: 'Haswell'}))
    assert fast == (0, 'None\n', '')
