"""`d2lbert parity`: what it prints, writes, and how it ends."""

import json
import math
import re

import numpy as np
import pytest

from backends import base
from d2lbert import parity
from d2lbert.errors import InputError
from d2lbert.parity.report import Report, compare_backends
from d2lbert.runs.config import Config
from d2lbert.runs.folder import locked
from helpers import RUN_SIZES, TINY, assert_refused


@pytest.fixture
def compare(both_tabs, run, text_file, tmp_path):
    """Compares tiny networks, and keeps the report in `tmp_path / 'out'`."""

    def compare(*args):
        return run(
            *('parity', *TINY, '--steps=2', '--corpus', text_file),
            *('--out', tmp_path / 'out', *args),
        )

    return compare


@pytest.fixture
def fault(both_tabs, monkeypatch):
    """PyTorch's layer normalisation has another epsilon."""
    backend = type(both_tabs[1].BACKEND)
    LayerNorm = backend.LayerNorm

    def wrong(self, num_hiddens):
        layer = LayerNorm(self, num_hiddens)
        layer.eps = 1000 * base.LAYER_NORM_EPSILON
        return layer

    monkeypatch.setattr(backend, 'LayerNorm', wrong)


def strictly(text):
    """Read JSON that any reader can read."""
    return json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize(
    'order',
    [
        ('torch', 'mxnet'),
        pytest.param(('mxnet', 'torch'), marks=pytest.mark.slow),
    ],
)
def test_parity(compare, tmp_path, dtype, order):
    done = compare('--backends', *order, '--dtype', dtype, '--json')
    assert done.status == 0
    heads, *rows, curves, numbers, last = done.out.splitlines()
    assert heads.split()[:2] == ['compared', 'tensors']
    assert [re.split('  +', row)[0] for row in rows] == [
        "layers' outputs",
        'losses',
        'gradients',
        'one Adam step',
        'evaluation',
        'training',
    ]
    assert all(row.endswith('pass') for row in rows)
    out = tmp_path / 'out'
    assert {path.name for path in out.iterdir()} == {
        '.lock',
        'parity.json',
        'parity.png',
        'parity.svg',
    }
    assert str(out / 'parity.png') in curves
    assert str(out / 'parity.json') in numbers
    report = strictly(last)
    assert report == strictly((out / 'parity.json').read_text())
    assert report['passed'] is True and report['dtype'] == dtype
    assert list(report['histories']) == list(order)
    assert report['config']['recipe'] == 'corrected'


def test_a_picture_that_fails_costs_no_numbers(
    compare, tmp_path, monkeypatch
):
    def draw(*_):
        raise ValueError('no such backend')

    monkeypatch.setattr('d2lbert.runs.display.draw_parity', draw)
    done = compare()
    assert done.status == 0
    assert 'not be drawn: no such backend' in done.err
    assert 'Curves' not in done.out
    report = strictly((tmp_path / 'out' / 'parity.json').read_text())
    assert len(report['histories']['mxnet']) == 2


def test_a_difference_is_named(compare, fault, tmp_path):
    done = compare('--json')
    assert done.status == 1
    assert 'FAIL' in done.out
    failures = [line for line in done.out.splitlines() if ' of ' in line]
    assert len(failures) == 20
    assert all(
        re.fullmatch(
            r'(forward|losses|gradients|step|training) of .+: largest '
            r'difference \S+ at \[.+\] \(\S+ of the largest magnitude\), '
            r'\S+ against \S+; allowed is \S+',
            line,
        )
        for line in failures
    )
    more = int(re.search(r'^… and (\d+) more$', done.out, re.M)[1])
    report = strictly(done.out.splitlines()[-1])
    failed = [d for d in report['differences'] if not d['passed']]
    assert len(failed) == 20 + more
    assert report['passed'] is False
    assert (tmp_path / 'out' / 'parity.png').exists()


def test_the_twin_decides_nothing(compare):
    done = compare('--twin', '--json', '--backends', 'torch', 'torch')
    assert done.status == 0
    assert '(PyTorch and its twin)' in done.out
    report = strictly(done.out.splitlines()[-1])
    assert list(report['histories']) == [
        'torch',
        'torch, again',
        'torch, one weight nudged',
    ]
    assert len(report['twin']) == 2
    # The very same bits, but for the twin
    assert {d['max_abs'] for d in report['differences']} == {0}


def test_the_twin_differs_by_rounding(both_tabs, text_file):
    report = compare_backends(
        ('torch', 'torch'), twin=True, progress=False, dtype='float64',
        corpus=text_file, **RUN_SIZES | {'batch_size': 32}, steps=3,
    )  # fmt: skip
    assert 0 < max(d.max_abs for d in report.twin) < 1e-9


def test_numbers_that_json_has_not():
    lost = parity.compare_arrays('x', 'x', [np.nan], [1.0], 1e-6)
    report = Report(Config(), ('torch', 'mxnet'), 'float32', 9, {}, [lost])
    assert report.as_dict()['differences'][0]['max_abs'] is None
    strictly(json.dumps(report.as_dict()))
    assert math.isinf(lost.max_abs)


def test_every_option_reaches_the_comparison(compare):
    done = compare(
        *('--recipe', 'mxnet', '--steps', 1, '--batch-size', 9),
        *('--max-len', 24, '--num-hiddens', 12, '--ffn-num-hiddens', 20),
        *('--num-heads', 3, '--num-blks', 1, '--dropout', 0),
        *('--lr', '2e-3', '--devices', 'cpu:2', '--micro-batch', 4),
        *('--seed', 7, '--vocab-size', 40, '--json'),
        *('--schedule', 'linear', '--schedule-steps', 4, '--warmup', 2),
        *('--weight-decay', 0.1, '--clip-norm', 3),
        *('--initialization', 'truncated_normal'),
    )
    config = strictly(done.out.splitlines()[-1])['config']
    del config['corpus']
    assert config == {
        'backend': 'torch',
        'recipe': 'mxnet',
        'tokenizer': 'words',
        'vocab_size': 40,
        'steps': 1,
        'batch_size': 9,
        'preset': 'chapter',
        'checkpoint_blocks': False,
        'max_len': 24,
        'num_hiddens': 12,
        'ffn_num_hiddens': 20,
        'num_heads': 3,
        'num_blks': 1,
        'dropout': 0,
        'lr': 0.002,
        'schedule': 'linear',
        'schedule_steps': 4,
        'warmup': 2,
        'weight_decay': 0.1,
        'clip_norm': 3,
        'initialization': 'truncated_normal',
        'devices': 'cpu:2',
        'micro_batch': 4,
        'seed': 7,
        'save_every': None,
        'keep': 2,
        'evaluate_every': None,
        'split': 'valid',
    }


@pytest.mark.parametrize(
    ('args', 'expected'),
    [
        (('--backends', 'torch', 'numpy'), "'numpy'"),
        (('--backends', 'numpy', 'torch'), "'numpy'"),
        (('--backends', 'all', 'torch'), 'or all where'),
        (('--dtype', 'float16'), "'float16'"),
        (('--recipe', 'keras'), "'keras'"),
        (('--steps', '0'), 'steps = 0'),
        (('--corpus', 'nowhere.txt'), 'nowhere.txt'),
        (('--devices', 'cpu:99'), 'less than the 99 devices'),
        (('--out', 'o' * 300), 'name too long'),
    ],
)
def test_bad_input(compare, tmp_path, args, expected):
    done = compare(*args)
    assert done.status in (1, 2) and expected in done.err
    assert done.err.count('\n') == 1 and not done.out
    assert not (tmp_path / 'out').exists()


def test_a_comparison_is_not_overwritten(compare, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'parity.json').write_text('precious')
    assert_refused(compare(), 'holds parity.json already')
    assert (tmp_path / 'out' / 'parity.json').read_text() == 'precious'


def test_two_comparisons_in_one_folder(compare, tmp_path):
    (tmp_path / 'out').mkdir()
    with locked(tmp_path / 'out'):
        assert_refused(compare(), 'another process is using')


def test_only_exact_arithmetic_is_compared(both_tabs):
    with pytest.raises(InputError, match="precision = 'bf16'"):
        compare_backends(precision='bf16')


def test_help(run, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    for command in ('parity', 'convert'):
        done = run(command, '--help')
        assert done.status == 0
        assert max(map(len, done.out.splitlines())) <= 80
        assert '...' not in done.out
