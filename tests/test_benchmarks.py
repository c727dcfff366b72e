"""The statistics and the page of the benchmarks, and a tiny measurement."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    __main__,
    gpu,
    measure,
    products,
    profiling,
    report,
    targets,
    workload,
)
from benchmarks.compare import QUICK, Bench, MeasurementError, in_turn
from benchmarks.numbers import Spread, paired
from benchmarks.sections import check_equal_examples
from benchmarks.targets import Target
from d2lbert.frameworks import FRAMEWORKS
from d2lbert.pytest_plugin import require
from helpers import BOOK_BACKENDS

ORACLE = Path(__file__).parent.parent / '.oracle' / 'bin' / 'python'

# ---- statistics ------------------------------------------------------


def test_ratios_are_of_neighbours():
    # Both slow down in the third round
    ratio = paired([30, 40, 3], [10, 10, 1])
    assert ratio == Spread(3, 3, 4)
    with pytest.raises(ValueError):
        paired([1, 2], [1])


def test_sides_take_turns():
    order = []
    results = in_turn(
        'training',
        2,
        {
            'textbook': lambda: order.append('t') or len(order),
            'ours': lambda: order.append('o') or len(order),
        },
    )
    assert ''.join(order) == 'toto'
    assert results == {'textbook': [1, 3], 'ours': [2, 4]}


@pytest.mark.parametrize('power', [0, 0.5, 1, 2])
def test_exponent(power):
    sizes = [10, 20, 40, 80]
    costs = [3e-4 * size**power for size in sizes]
    assert targets.exponent(sizes, costs) == pytest.approx(power)


@pytest.mark.parametrize(
    ('measured', 'at_most', 'verdict'),
    [
        (2.9, False, '**no**'),
        (3, False, 'yes, the aim is not'),
        (5, False, 'yes, and the aim'),
        (3.5, True, 'yes, and the aim'),
        (4.5, True, '**no**'),
    ],
)
def test_verdict(measured, at_most, verdict):
    target = Target('it', 3, 4, Spread(measured, 0, 9), at_most=at_most)
    assert target.verdict() == verdict


# ---- arithmetic ------------------------------------------------------


def test_flops_of_one_row():
    sizes = workload.Sizes(2, 3, 1, 2, 0.0)
    batch = [
        np.zeros((1, 6)),
        np.zeros((1, 6)),
        np.array([4.0]),
        np.array([[1, 3, 0]]),
        np.array([[1.0, 1.0, 0.0]]),
        np.zeros((1, 3)),
        np.zeros(1),
    ]
    # n = 4, p = 2, q = 3 (with <cls>), H = 2, F = 3, V = 7
    first = 4 * (4 * 4 + 2 * 6) + 2 * 16 * 2
    last = 2 * 4 * 4 + 3 * (2 * 4 + 2 * 6) + 2 * 4 * 3 * 2
    heads = 2 * (4 + 2 * 7) + 4 + 4
    found = workload.useful_flops(batch, 7, sizes)
    assert found == 6 * (first + last + heads)


def test_flops_of_encoding():
    sizes = workload.Sizes(2, 3, 1, 2, 0.0)
    block = 4 * (4 * 4 + 2 * 6) + 2 * 16 * 2
    assert workload.encoding_flops([4], sizes) == 2 * 2 * block
    assert workload.encoding_flops([4, 4]) == 2 * workload.encoding_flops([4])


def test_flops_do_not_count_padding():
    batch = workload.full_batch(3, 20, 50)
    wider = [
        np.pad(array, ((0, 0), (0, 5))) if array.ndim == 2 else array
        for array in batch
    ]
    assert workload.useful_flops(batch, 50) == workload.useful_flops(
        wider, 50
    )


def test_products_of_a_step_are_its_useful_arithmetic():
    # Without padding, where each row has as many predictions, nothing else
    batch = workload.full_batch(6, 20, 50)
    micro_batches = products.training_products(batch, 50, 4, False)
    assert len(micro_batches) == 2
    found = sum(map(products.flops_of, micro_batches))
    expected = workload.useful_flops(batch, 50)
    # `full_batch` may predict `<cls>`, which the formula counts once
    assert expected <= found <= 1.01 * expected


def test_products_count_padding_once_a_row():
    batch = workload.full_batch(6, 20, 50)
    *others, weights, labels, nsp_labels = batch
    weights = np.repeat([[1.0, 1, 0], [1, 1, 1]], 3, axis=0)
    batch = [*others, weights, labels, nsp_labels]
    rows = [
        one.m
        for counts_padding in (False, True)
        for part in products.training_products(batch, 1000, 6, counts_padding)
        for one in part
        if (one.k, one.n) == (128, 1000)
    ]
    assert rows == [15, 18]


def test_products_of_encoding_are_its_arithmetic():
    found = products.flops_of(products.encoder_products([7, 7, 7]))
    assert found == workload.encoding_flops([7, 7, 7])
    padded = products.flops_of(products.encoder_products([7, 7, 4]))
    assert padded == found > workload.encoding_flops([7, 7, 4])


def test_products_are_computed_where_that_is_said():
    require('torch')
    asked = []

    def in_numpy(product):
        asked.append(product)
        return product.n == 5

    parts = [[products.Product(2, 3, 4, 6)], [products.Product(2, 3, 5)]] * 2
    found = products.time_products(parts, 1, in_numpy)
    assert found['seconds'] > 0
    assert found['flops'] == 2 * (2 * 2 * 3 * 4 * 6 + 2 * 2 * 3 * 5)
    assert sorted(asked) == sorted(part[0] for part in parts)


@pytest.mark.parametrize('in_numpy', [True, False])
def test_a_product_is_one(in_numpy):
    require('torch')
    one = products.Product(2, 3, 4, 6)
    A, B, out = memory = products.new_memory([one])
    products.multiplication(one, memory, in_numpy)()
    expected = A.reshape(6, 2, 3) @ B.reshape(6, 3, 4)
    np.testing.assert_allclose(out.reshape(6, 2, 4), expected, rtol=1e-6)


def test_examples_are_kept(tmp_path):
    batch = workload.full_batch(5, 8, 30)
    workload.save_examples(tmp_path / 'examples.npz', batch, 30)
    arrays, vocab_size = workload.read_examples(tmp_path / 'examples.npz')
    assert vocab_size == 30
    for found, expected in zip(arrays, batch, strict=True):
        np.testing.assert_array_equal(found, expected)
    batches = workload.Examples(arrays, 30).batches(2)
    assert [len(batch[0]) for batch in batches] == [2, 2, 1]


def test_sentences_have_words():
    lines = ['= A . <unk> <unk> <unk> <unk> <unk> <unk> . a b c d e\n'] * 2
    assert workload.sentences(lines, 2) == ['a b c d e'] * 2
    with pytest.raises(ValueError, match='has 2 sentences, not 3'):
        workload.sentences(lines, 3)


def test_different_examples_are_an_error():
    run = {'sha256': {'tokens': '1'}, 'examples': 2, 'vocabulary': 3}
    same = {'textbook': [run, run], 'ours': [run]}
    check_equal_examples({'torch': same})
    other = run | {'sha256': {'tokens': '2'}}
    with pytest.raises(MeasurementError, match='torch, ours: sha256'):
        check_equal_examples({'torch': same | {'ours': [other]}})


# ---- profiles --------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'shapes', 'kind'),
    [
        ('aten::mm', [[64, 128], [128, 128]], profiling.PRODUCTS),
        ('aten::mm', [[64, 128], [128, 999]], profiling.VOCABULARY),
        ('aten::_softmax', [[8, 2, 9, 9]], profiling.SOFTMAX),
        ('aten::_log_softmax', [[64, 999]], profiling.VOCABULARY),
        ('aten::embedding', [[999, 128], [8, 9]], profiling.EMBEDDING),
        ('aten::sqrt', [[999, 128]], profiling.ADAM),
        ('aten::add_', [[999, 128]], profiling.ELEMENTWISE),
    ],
)
def test_kind_of_operator(name, shapes, kind):
    assert profiling.torch_kind(name, shapes, 999) == kind


def test_mxnets_table():
    table = """
Custom Operator
=================
Name      Total Count  Time (ms)  Min Time (ms)  Max Time (ms)  Avg Time (ms)
----      -----------  ---------  -------------  -------------  -------------
::dot               2     9.0000         4.0000         5.0000         4.5000

operator
=================
Name      Total Count  Time (ms)  Min Time (ms)  Max Time (ms)  Avg Time (ms)
----      -----------  ---------  -------------  -------------  -------------
FullyConnected     14   114.0000         1.0000       100.0000         8.1429

"""
    ((name, count, spent, longest),) = profiling.mxnet_operators(table)
    assert (name, count, spent, longest) == (
        'FullyConnected',
        14,
        pytest.approx(0.114),
        pytest.approx(0.1),
    )
    assert profiling.spent_on_logits(count, spent, longest, 1) == longest
    assert profiling.spent_on_logits(14, 0.114, 0.01, 1) == 0


def test_numpys_time_is_its_callers():
    def compute():
        np.median(np.linspace(0, 1, 1_000_000))

    total, functions = profiling.time_python(compute)
    assert functions[f'{__file__}:compute'] > 0.9 * total


# ---- the page --------------------------------------------------------


def training_run(pairs_per_sec, peak):
    return {
        'pairs_per_sec': pairs_per_sec,
        'pairs_per_sec_of_call': 0.9 * pairs_per_sec,
        'peak_bytes': peak,
        'peak_bytes_after_import': 1e8,
        'peak_bytes_on_card': 1e9,
    }


def loading_run(seconds):
    return {
        'seconds': seconds,
        'peak_bytes': 4e8,
        'peak_bytes_after_import': 1e8,
        'examples': 43631,
        'vocabulary': 20256,
    }


def both(results):
    return dict.fromkeys(workload.FRAMEWORKS, results)


@pytest.fixture
def results():
    """Invented results of all sections, of two rounds each."""
    seconds = dict.fromkeys(profiling.KINDS, 0.1)
    curves = {'vocabulary': [10, 20, 40], 'length': [1, 2, 4]}
    curves |= {'batch_size': [1, 2, 4], 'hidden': [8, 16, 32]}
    points = {
        name: [{'seconds': size / 1e3, 'flops': size} for size in sizes]
        for name, sizes in curves.items()
    }
    sections = {
        'training': {
            'batch_size': 512,
            **both(
                {
                    'num_steps': 6,
                    'flops_per_step': 83e9,
                    'rate': [{'flops_per_sec': 250e9}] * 2,
                    'products': [{'seconds': 6.144, 'flops': 9e11}] * 2,
                    'textbook': [training_run(100, 3e9)] * 2,
                    'ours': [training_run(x, 1e9) for x in (450, 470)],
                }
            ),
        },
        'loading': both(
            {'textbook': [loading_run(8)] * 2, 'ours': [loading_run(1)] * 2}
        ),
        'reloading': {'made': [loading_run(1)], 'read': [loading_run(0.2)]},
        'representing': {
            'sentences': 10_000,
            'sample': 300,
            'flops': 140e9,
            **both(
                {
                    'rate': [{'flops_per_sec': 250e9}],
                    'products': [{'seconds': 0.8, 'flops': 150e9}],
                    'textbook, one at a time': [{'sentences_per_sec': 500}],
                    'ours, one at a time': [{'sentences_per_sec': 600}],
                    'represent': [{'sentences_per_sec': 9000}],
                }
            ),
        },
        'importing': {
            'import d2lbert': [0.1, 0.2],
            'd2lbert --help': [0.6, 0.7],
            'import torch': [1.0, 1.2],
            'from d2lbert import torch': [1.1, 1.3],
            **{
                f'd2lbert pretrain --backend {name}': [2.0, 3.0]
                for name in FRAMEWORKS
            },
        },
        'growth': {
            'base': {'length': 1},
            'curves': curves,
            **both([points] * 2),
        },
        'corpus': {str(n): [loading_run(n)] * 2 for n in (1, 3, 10)},
        'shards': both(
            {
                devices: [training_run(speed, 1e9)] * 2
                for devices, speed in (('cpu', 100), ('cpu:2', 80))
            }
        ),
        'company': {
            'cores': 2,
            'batch_sizes': [512, 64],
            **both(
                {
                    f'{side} {busy}': [training_run(speed / (busy + 1), 1e9)]
                    * 2
                    for side, speed in (
                        ('textbook 512', 100),
                        ('ours 512', 300),
                        ('ours 64', 200),
                    )
                    for busy in (0, 2, 4)
                }
            ),
        },
        'profile': both(
            {side: {'seconds': seconds} for side in ('textbook', 'ours')}
        ),
        'display': {'progress': [1e-4, 2e-4], 'animator': [1e-5, 2e-5]},
    }
    return {
        'machine': {
            'processor': 'An abacus',
            'cores': 2,
            'memory_bytes': 2**34,
            'system': 'Linux',
            'versions': {'ours': 'numpy 1', 'textbook': 'd2l 1.0.3'},
            'variables': {},
        },
        'quick': False,
        'sections': {
            name: {
                'date': '2026-01-01',
                'commit': 'abc',
                'load_before': 0.1,
                'seconds': 60,
                'results': section,
            }
            for name, section in sections.items()
        },
    }


def test_page(results):
    page = report.page(results)
    rows = {
        line.split(' | ')[0].removeprefix('| '): line.removesuffix(' |')
        for line in page.splitlines()
    }
    for what, expected in {
        'training, PyTorch, pairs/s as printed': (
            '≥ 3.5 × |  | 4.60 × (4.50 to 4.70) | yes'
        ),
        'training, MXNet, pairs/s as printed': (
            '≥ 6 × |  | 4.60 × (4.50 to 4.70) | **no**; the products '
            'alone 5.00 × (5.00 to 5.00); our operators alone '
            '12.8 × (12.8 to 12.8)'
        ),
        'share of the matrix-product rate, PyTorch': (
            '≥ 65 % |  | 29.8 % (29.2 to 30.5) | **no**; the products '
            'alone 32.4 % (32.4 to 32.4); our operators alone '
            '83.0 % (83.0 to 83.0)'
        ),
        'loading WikiText-2 the first time, MXNet': (
            '≥ 40 × |  | 8.00 × (8.00 to 8.00) | **no**'
        ),
        'loading WikiText-2 again, as `d2lbert pretrain` does': (
            '≤ 0.3 s |  | 0.20 s (0.20 to 0.20) | yes'
        ),
        'representing 10,000 sentences, MXNet': (
            '≥ 10 × |  | 18.0 × (18.0 to 18.0) | yes'
        ),
        'share of the matrix-product rate in it, PyTorch': (
            '≥ 75 % |  | 50.4 % (50.4 to 50.4) | **no**; the products '
            'alone 70.0 % (70.0 to 70.0)'
        ),
        '`d2lbert --help`, the whole process': (
            '≤ 0.5 s |  | 0.65 s (0.60 to 0.70) | **no**'
        ),
        '`from d2lbert import torch`, more than `import torch`': (
            '≤ 0.15 s |  | 0.10 s (0.10 to 0.10) | yes'
        ),
        '`d2lbert pretrain --backend jax` on the sample, to its first step': (
            '≤ 3 s |  | 2.50 s (2.00 to 3.00) | yes'
        ),
        "growth with length, MXNet, exponent less the arithmetic's": (
            '≤ 0.1 |  | '
        ),
        'cpu:2, PyTorch, speed against one shard': (
            '≥ 0.9 × |  | 0.80 × (0.80 to 0.80) | **no**'
        ),
        'batches of 512, MXNet, beside 2 against alone': (
            '≥ 0.4 × | 0.5 × | 0.33 × (0.33 to 0.33) | **no**'
        ),
        'training, PyTorch, against the textbook beside 2': (
            '≥ 3 × |  | 3.00 × (3.00 to 3.00) | yes'
        ),
        'the progress line, of our fastest step': '≤ 1 % | ',
    }.items():
        assert expected in rows[what]
    assert 'An abacus' in page
    assert 'Not measured' not in page
    assert 'not to be quoted' not in page
    assert 'Measured at commit `abc` with the code of `backends/`' in page


def test_page_says_what_could_be_reached_at_most(results):
    page = ' '.join(report.page(results).split())
    # 250 GFLOP/s over 83 GFLOP for 512 pairs, and over 140 for 10,000
    # sentences
    for bound in (
        '1,542 pairs/s, 15.4 × the textbook in PyTorch and 15.4 × the '
        'textbook in MXNet.',
        '17,857 sentences/s, 35.7 × the textbook in PyTorch and 35.7 × the '
        'textbook in MXNet.',
    ):
        assert f'these products is faster than {bound}' in page


def test_page_says_how_fast_the_products_alone_are(results):
    page = report.page(results)
    for row in (
        '| PyTorch | 500 (500 to 500) | 32 % (32 to 32) | '
        '5.0 × (5.0 to 5.0) | 92 % (90 to 94) |',
        '| MXNet | 12,500 (12,500 to 12,500) | 70 % (70 to 70) | '
        '25.0 × (25.0 to 25.0) | 72 % (72 to 72) |',
    ):
        assert row in page


def test_page_says_what_was_not_measured(results):
    del results['sections']['display'], results['sections']['growth']
    page = report.page(results | {'quick': True})
    assert 'Not measured: How cost grows, Display.' in page
    assert 'not to be quoted' in page


def test_page_and_picture_are_written(results, tmp_path):
    (tmp_path / 'results.json').write_text(json.dumps(results))
    report.write(tmp_path)
    assert (tmp_path / 'growth.png').read_bytes().startswith(b'\x89PNG')
    assert '](growth.png)' in (tmp_path / 'results.md').read_text('utf-8')


def test_results_of_another_machine_are_not_kept(results, tmp_path, capsys):
    head = {'machine': results['machine'], 'quick': False}
    assert __main__.earlier_results(tmp_path, head)['sections'] == {}
    (tmp_path / 'results.json').write_text(json.dumps(results))
    assert __main__.earlier_results(tmp_path, head) == results
    other = head | {'machine': results['machine'] | {'cores': 4}}
    assert __main__.earlier_results(tmp_path, other)['sections'] == {}
    assert 'starting anew' in capsys.readouterr().err


def test_gpu_page(results):
    runs = results['sections']['training']['results']['torch']
    page = gpu.describe(
        {
            'date': '2026-01-01',
            'commit': 'abc',
            'card': 'Voodoo 2',
            'cuda': '1',
            'machine': results['machine'],
            'batch_size': 512,
            'num_steps': 50,
            'rounds': {side: runs[side] for side in ('textbook', 'ours')},
        }
    )
    assert 'training on a Voodoo 2, pairs/s as printed | ≥ 5 ×' in page
    assert '4.60 × (4.50 to 4.70) | **no** |' in page
    assert 'Measured at commit `abc`' in page


def test_gpu_page_without_a_card(tmp_path, monkeypatch, capsys):
    require('torch')
    import torch

    if torch.cuda.is_available():
        pytest.skip('there is a card')
    arguments = ['gpu', '--d2l', 'nowhere', '--out', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', arguments)
    page = tmp_path / gpu.PAGE_FILE
    assert gpu.main() == 0
    assert 'No CUDA card was at hand' in page.read_text('utf-8')
    assert len(capsys.readouterr().out.splitlines()) == 1
    # A page that a card has made stays
    page.write_text('made elsewhere', 'utf-8')
    assert gpu.main() == 0
    assert page.read_text('utf-8') == 'made elsewhere'


# ---- measurements ----------------------------------------------------


def test_printed_speed():
    printed = 'MLM loss 7.3\n5852.9 sentence pairs/sec on [gpu(0), gpu(1)]\n'
    assert measure.pairs_per_sec(printed) == 5852.9
    with pytest.raises(ValueError, match='printed no speed'):
        measure.pairs_per_sec('')


@pytest.mark.slow
@pytest.mark.parametrize('backend_name', BOOK_BACKENDS)
def test_training_is_measured(backend_name, tmp_path):
    require(backend_name)
    bench = Bench(tmp_path, QUICK, sys.executable)
    run = bench.measure(
        'ours',
        backend_name,
        'training',
        corpus='sample',
        num_warmup=1,
        num_steps=1,
        batch_size=4,
    )
    assert 0 < run['pairs_per_sec_of_call'] < run['pairs_per_sec']
    assert 0 < run['peak_bytes_after_import'] < run['peak_bytes'] < 2**33


def test_a_failed_measurement_says_why(tmp_path):
    bench = Bench(tmp_path, QUICK, sys.executable)
    with pytest.raises(MeasurementError, match='No module named'):
        bench.measure('ours', 'tensorflow', 'matrix_rate')


@pytest.mark.oracle
def test_the_textbook_is_measured(tmp_path, monkeypatch):
    if not ORACLE.exists():
        pytest.skip('there is no .oracle: run `make oracle` first')
    out = tmp_path / 'out'
    arguments = ['--quick', '--textbook', str(ORACLE), '--out', str(out)]
    monkeypatch.setattr(sys, 'argv', ['benchmarks', *arguments, 'training'])
    assert __main__.main() == 0
    page = (out / 'results.md').read_text('utf-8')
    assert 'training, MXNet, pairs/s as printed' in page
