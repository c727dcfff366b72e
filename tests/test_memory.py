"""What a training takes of memory, and what makes it take less."""

import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import d2lbert
from backends.base import Backend
from backends.groups import ALONE
from d2lbert.data.batches import Batches
from d2lbert.errors import InputError
from d2lbert.pytest_plugin import require
from d2lbert.runs import memory
from d2lbert.runs.config import PRESETS, Config
from d2lbert.runs.pretraining import Pretraining, dry_run
from d2lbert.runs.run import load_examples
from helpers import (
    BOOK_BACKENDS,
    ROOT,
    losses_and_gradients,
    make_batch,
    new_trainer,
    skip_beyond_the_book,
    train,
)

# ---- --checkpoint-blocks ---------------------------------------------


@pytest.fixture(
    params=[*BOOK_BACKENDS, pytest.param('jax', marks=pytest.mark.jax)]
)
def measured_name(request):
    """Each framework: the memory of all was measured."""
    require(request.param)
    return request.param


@pytest.mark.parametrize(
    ('devices', 'micro_batch', 'num_blks'),
    [('cpu', None, 4), ('cpu', 2, 3), ('cpu:3', None, 3), ('cpu', None, 1)],
)
def test_checkpointed_blocks_give_the_same_bits(
    tab, devices, micro_batch, num_blks
):
    options = {
        'devices': devices,
        'micro_batch': micro_batch,
        'num_blks': num_blks,
    }
    plain, again = (
        new_trainer(tab, checkpoint_blocks=checkpoint, **options)
        for checkpoint in (False, True)
    )
    batch = make_batch(7)
    losses, gradients = losses_and_gradients(plain, batch)
    losses_again, gradients_again = losses_and_gradients(again, batch)
    np.testing.assert_array_equal(losses_again, losses)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradients_again[name], gradient, name)
    for ours, theirs in zip(train(again), train(plain), strict=True):
        np.testing.assert_equal(ours, theirs)


@pytest.mark.parametrize(('checkpoint', 'calls'), [(False, 1), (True, 2)])
def test_a_checkpointed_block_is_called_again(tab, checkpoint, calls):
    skip_beyond_the_book(tab)
    trainer = new_trainer(
        tab,
        num_blks=3,
        micro_batch=7,
        checkpoint_blocks=checkpoint,
    )
    called = []
    for i, blk in enumerate(trainer.net.encoder.blks):
        blk.register_forward_pre_hook(lambda *_, i=i: called.append(i))
    trainer.value_and_grad(make_batch(7)).losses()
    # The last block is the first to be differentiated: it keeps its own
    assert [called.count(i) for i in range(3)] == [calls, calls, 1]


def test_outside_of_a_training_blocks_are_called_once(tab):
    skip_beyond_the_book(tab)
    trainer = new_trainer(tab, checkpoint_blocks=True)
    trainer.step(make_batch(7))
    called = []
    for blk in trainer.net.encoder.blks:
        blk.register_forward_pre_hook(lambda *_: called.append(1))
    batch = make_batch(2)
    tab.BACKEND.evaluate(trainer.net, [batch[:3]])
    assert len(called) == 2


# ---- --preset --------------------------------------------------------


def test_presets_are_those_of_the_paper():
    base, large = (
        memory.count_parameters(Config(preset=name), 30522)
        for name in ('bert-base', 'bert-large')
    )
    # Beside the 110 and 340 million of the paper: the output layer, which
    # is not tied to the embeddings, and 488 more positions
    assert base - 30522 * 768 == pytest.approx(110e6, rel=0.02)
    assert large - 30522 * 1024 == pytest.approx(340e6, rel=0.02)


@given(
    st.sampled_from(list(PRESETS)),
    st.dictionaries(
        st.sampled_from(['max_len', 'num_blks', 'ffn_num_hiddens']),
        st.integers(8, 99),
    ),
)
def test_an_option_that_is_given_wins(preset, given):
    config = Config(preset=preset, **given).as_dict()
    assert config.items() >= (PRESETS[preset] | given).items()
    # A run that is read has the same options
    assert Config(**config).as_dict() == config


# ---- the prediction --------------------------------------------------


def test_parameters_are_counted_as_the_network_has_them(tab):
    sizes = {'num_hiddens': 12, 'ffn_num_hiddens': 20, 'num_heads': 3}
    config = Config(num_blks=3, **sizes)
    net = tab.BERTModel(**config.net_arguments(50))
    shapes = tab.BACKEND.parameter_shapes(net).values()
    assert memory.count_parameters(config, 50) == sum(map(math.prod, shapes))


#: Options of networks, from the chapter's to BERT-Large. In a step each of
#: two workers has a micro-batch or more.
NETWORKS = {
    'chapter': ['--batch-size', '512'],
    'mini': [
        *('--max-len', '128', '--num-hiddens', '256', '--num-heads', '4'),
        *('--ffn-num-hiddens', '1024', '--num-blks', '4'),
        *('--batch-size', '128'),
    ],
    'small': [
        *('--max-len', '256', '--num-hiddens', '512', '--num-heads', '8'),
        *('--ffn-num-hiddens', '2048', '--num-blks', '4'),
        *('--batch-size', '16', '--micro-batch', '4'),
    ],
    'medium': [
        *('--max-len', '512', '--num-hiddens', '512', '--num-heads', '8'),
        *('--ffn-num-hiddens', '2048', '--num-blks', '8'),
        *('--batch-size', '8', '--micro-batch', '2'),
    ],
    'base': [
        *('--preset', 'bert-base', '--batch-size', '4'),
        *('--micro-batch', '1'),
    ],
    'large': [
        *('--preset', 'bert-large', '--batch-size', '2'),
        *('--micro-batch', '1'),
    ],
}
#: Runs the command and says how much memory the process had at most. Unlike
#: `ru_maxrss` this does not begin with that of the parent.
PEAK = (
    'import atexit, re; from d2lbert.cli import main; '
    'atexit.register(lambda: print("peak", '
    're.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])); '
    'main()'
)


def write_corpus(path, max_len, num_words=20000, num_pairs=100):
    """Write sentences of which each pair has all of `max_len` tokens."""
    length = (max_len - 3) // 2
    num_sentences = -(-max(5 * num_words, 2 * num_pairs * length) // length)
    sentences = [
        ' '.join(f'w{(i * length + k) % num_words}' for k in range(length))
        for i in range(num_sentences)
    ]
    path.write_text(
        ''.join(
            ' . '.join(sentences[i : i + 4]) + ' .\n'
            for i in range(0, num_sentences, 4)
        )
    )
    return path


def predicted_and_measured(*args):
    """Return both peaks of a training by the command, in bytes."""

    def output(*command):
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            capture_output=True, cwd=ROOT, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 2 and 'at its peak' in done.stderr:
            pytest.skip(f'this machine is too small: {done.stderr}')
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    dry = output('-m', 'd2lbert', 'pretrain', *args, '--dry-run', '--json')
    peak = output('-c', PEAK, 'pretrain', *args)
    return json.loads(dry)['total'], 1024 * int(peak.removeprefix('peak'))


needs_proc = pytest.mark.skipif(
    not os.path.exists('/proc/self/status'),
    reason='the system does not say how much memory a process had',
)


@pytest.mark.slow
@needs_proc
def test_a_small_training_takes_what_is_predicted(measured_name, tmp_path):
    predicted, measured = predicted_and_measured(
        *('--backend', measured_name, '--devices', 'cpu', '--steps', 2),
        *('--out', tmp_path / 'run'),
    )
    assert predicted == pytest.approx(measured, rel=0.15)


@pytest.mark.long
@needs_proc
@pytest.mark.parametrize(
    ('network', 'more'),
    [
        *((network, []) for network in NETWORKS),
        ('base', ['--checkpoint-blocks', '--save-every', '1']),
        ('small', ['--evaluate-every', '1']),
        ('large', ['--checkpoint-blocks']),
    ],
    ids=str,
)
def test_a_training_takes_what_is_predicted(
    measured_name, tmp_path, network, more
):
    """Shows its numbers with `pytest -s`; docs/scaling.md has them."""
    options = NETWORKS[network]
    config = dict(zip(options[::2], options[1::2], strict=True))
    preset = PRESETS[config.get('--preset', 'chapter')]
    max_len = int(config.get('--max-len', preset['max_len']))
    corpus = write_corpus(tmp_path / 'corpus.txt', max_len)
    lines = corpus.read_text().splitlines(keepends=True)
    held_out = tmp_path / 'held_out.txt'
    held_out.write_text(''.join(lines[:20]))
    predicted, measured = predicted_and_measured(
        *('--backend', measured_name, '--devices', 'cpu', '--steps', 2),
        *('--corpus', corpus, '--split', held_out),
        *('--out', tmp_path / 'run', *options, *more),
    )
    print(
        f'\n{network} {measured_name} {" ".join(more)}: predicted '
        f'{predicted / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB, '
        f'{predicted / measured - 1:+.0%}'
    )
    assert predicted == pytest.approx(measured, rel=0.15)


SMALL = {'devices': 'cpu', 'steps': 1}


def predicted(measured_name, **options):
    return dry_run(backend=measured_name, **SMALL | options).total


def num_tokens_of_the_sample():
    _, vocab = load_examples(Config(), progress=False)
    return len(vocab)


def test_what_takes_less_memory(measured_name):
    """Each option that an error may name takes less than without it."""
    large = {'num_hiddens': 256, 'num_blks': 8, 'batch_size': 256}
    plain = predicted(measured_name, **large)
    assert predicted(measured_name, micro_batch=8, **large) < plain
    assert predicted(measured_name, checkpoint_blocks=True, **large) < plain
    assert predicted(measured_name, **large | {'devices': 'cpu:4'}) > plain
    # The best weights, and one copy more when the run is written
    evaluated = dry_run(
        backend=measured_name, **SMALL | large, evaluate_every=1
    )
    assert evaluated.total > plain
    assert evaluated.parts['the best weights'] == 4 * (
        memory.count_parameters(Config(**large), num_tokens_of_the_sample())
    )


def test_rows_that_are_short_take_less(measured_name):
    """Micro-batches are cut to their longest row."""
    plain = dry_run(backend=measured_name, **SMALL, max_len=64)
    longer = dry_run(backend=measured_name, **SMALL, max_len=512)
    # The sentences of the sample are not that long: 8 rows of 60 tokens
    assert longer.parts['the parameters'] == pytest.approx(
        plain.parts['the parameters'], rel=0.01
    )
    assert longer.total < plain.total


def test_a_device_that_was_not_measured(monkeypatch, one_backend):
    backend = d2lbert.frameworks.load_tab(one_backend).BACKEND
    monkeypatch.setattr(type(backend), 'footprint', Backend.footprint)
    with pytest.raises(InputError, match='was not measured'):
        dry_run(backend=one_backend, **SMALL)
    # It trains all the same
    Pretraining(Config(backend=one_backend, **SMALL), False, ALONE)


# ---- the command -----------------------------------------------------


def test_dry_run_lists_the_parts_and_writes_nothing(
    run, measured_name, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    done = run(
        *('pretrain', '--backend', measured_name, '--devices', 'cpu'),
        *('--dry-run', '--json'),
    )
    assert done.status == 0
    *lines, results = done.out.splitlines()
    results = json.loads(results)
    assert results['total'] == sum(results['parts'].values())
    assert lines[-2].split()[:1] == ['together']
    assert lines[-1].startswith('there is')
    for part, line in zip(results['parts'], lines, strict=False):
        assert line.startswith(part) and line.endswith(' GB')
    assert not os.path.exists('runs')


def test_dry_run_does_not_resume(run, tmp_path):
    done = run('pretrain', '--dry-run', '--resume', '--out', tmp_path)
    assert done.status == 2 and '--resume' in done.err


@pytest.mark.parametrize('dry', [[], ['--dry-run']])
@pytest.mark.parametrize(
    ('options', 'room', 'remedy'),
    [
        (['--micro-batch', '256'], 0.8, r'give --micro-batch \d+, with'),
        (
            ['--devices', 'cpu:16', '--micro-batch', '1'],
            0.7,
            'give --devices cpu',
        ),
        ([], 0.01, 'no micro-batch is small enough'),
    ],
)
def test_what_does_not_fit_is_refused(
    run, monkeypatch, tmp_path, measured_name, options, room, remedy, dry
):
    """`room`: how much there is, as a part of what the training takes."""
    resident = memory.resident_bytes()
    options = ['--backend', measured_name, '--steps', '1', *options]
    if '--devices' not in options:
        options += ['--devices', 'cpu']
    monkeypatch.setattr(memory, 'resident_bytes', lambda: resident)
    done = run('pretrain', *options, '--dry-run', '--json')
    needed = json.loads(done.out.splitlines()[-1])['total']
    monkeypatch.setattr(
        memory, 'available_bytes', lambda: room * (needed - resident)
    )
    out = tmp_path / 'run'
    done = run('pretrain', *options, *dry, '--out', out)
    assert done.status == 2
    assert bool(done.out) == bool(dry)
    (line,) = done.err.splitlines()
    assert 'GB of memory at its peak, and there are' in line
    assert re.search(remedy, line), line
    assert not out.exists()


def test_checkpointed_blocks_are_named_where_they_help(
    monkeypatch, tmp_path, measured_name
):
    corpus = write_corpus(tmp_path / 'corpus.txt', 512, num_words=500)
    options = {
        'backend': measured_name,
        'corpus': corpus,
        'max_len': 512,
        'num_blks': 16,
        'micro_batch': 1,
    }
    training = dry_run(**SMALL, **options)
    (activations,) = (
        size
        for part, size in training.parts.items()
        if part.startswith('activations')
    )
    room = training.total - 0.3 * activations - memory.resident_bytes()
    monkeypatch.setattr(memory, 'available_bytes', lambda: room)
    remedy = dry_run(**SMALL, **options).remedy
    assert remedy.startswith('give --checkpoint-blocks, with which')


def test_a_large_training_says_so_in_one_line(
    run, one_backend, monkeypatch, tmp_path
):
    # That of the tests' own process depends on what ran before
    monkeypatch.setattr(memory, 'resident_bytes', lambda: 4 * 10**8)
    options = ('--steps', 1, '--batch-size', 8, '--devices', 'cpu')
    options += ('--backend', one_backend)
    done = run('pretrain', *options, '--out', tmp_path / 'small')
    assert 'at its peak' not in done.err
    monkeypatch.setattr('d2lbert.runs.pretraining.LARGE', 1)
    done = run('pretrain', *options, '--out', tmp_path / 'large')
    assert done.status == 0
    (line,) = (x for x in done.err.splitlines() if 'at its peak' in x)
    assert 'the training takes' in line and '--dry-run' in line


# ---- what there is ---------------------------------------------------


@pytest.mark.parametrize(
    ('groups', 'files', 'expected'),
    [
        ('', {}, 9000 * 1024),
        # Version 2: copies of files can be dropped
        (
            '0::/a/b\n',
            {
                'a/memory.max': '5000',
                'a/memory.current': '3000',
                'a/memory.stat': 'inactive_file 200\nactive_file 100\n',
                'a/b/memory.max': 'max',
                'a/b/memory.current': '10',
            },
            2300,
        ),
        # Version 1, already over its limit
        (
            '2:cpu,memory:/a\n',
            {
                'memory/a/memory.limit_in_bytes': '5000\n',
                'memory/a/memory.usage_in_bytes': '6000\n',
                'memory/a/memory.stat': 'cache 10\n',
            },
            0,
        ),
    ],
)
def test_what_there_is(tmp_path, groups, files, expected):
    (tmp_path / 'own').write_text(groups)
    (tmp_path / 'meminfo').write_text(
        'MemTotal: 10000 kB\nMemAvailable: 9000 kB\nHugePages_Total: 0\n'
    )
    for name, text in files.items():
        path = tmp_path / 'mounted' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert expected == memory.available_bytes(
        tmp_path / 'meminfo', tmp_path / 'mounted', tmp_path / 'own'
    )


def test_a_system_that_does_not_say(tmp_path):
    none = tmp_path / 'none'
    total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    assert memory.available_bytes(none, none, none) == total


@pytest.mark.slow
def test_a_real_limit(tmp_path, one_backend):
    """A control group with little memory, which only root can make."""
    folder = memory.cgroups.ROOT / 'memory' / 'd2lbert-test'
    try:
        folder.mkdir()
        (folder / 'memory.limit_in_bytes').write_text(str(350 * 2**20))
    except OSError as error:
        pytest.skip(f'no control group of version 1 can be made: {error}')
    code = (
        f'open("{folder}/tasks", "w").write("0"); '
        'from d2lbert.cli import main; main()'
    )
    try:
        done = subprocess.run(
            [sys.executable, '-c', code, 'pretrain', '--dry-run',
             '--backend', one_backend, '--devices', 'cpu',
             '--num-hiddens', '512'],
            capture_output=True, cwd=ROOT, text=True, check=False,
        )  # fmt: skip
    finally:
        folder.rmdir()
    assert done.returncode == 2, done.stderr
    assert re.search(r'there are 0\.[345]\d GB', done.stderr)
    assert '--micro-batch' in done.stderr


def test_the_largest_step_is_found(one_backend):
    """That with the longest rows, of those that the training will take."""
    config = Config(backend=one_backend, batch_size=4, steps=5, **{
        name: value for name, value in SMALL.items() if name != 'steps'
    })  # fmt: skip
    training = Pretraining(config, False, ALONE)
    prediction = memory.Prediction(
        training.run.net.backend.footprint,
        *(1, training.examples, len(training.run.vocab)),
    )
    batches = Batches(training.examples, 4).from_step(0)
    longest = [next(batches).valid_lens.max() for _ in range(5)]
    shapes = prediction.largest_shapes(config, 1, 1)
    assert shapes == [(4, int(max(longest)))]
