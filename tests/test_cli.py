"""The `d2lbert` command, as somebody who is new to it would use it."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

import backends
import d2lbert
from backends.base import PRECISIONS
from d2lbert import errors, frameworks
from d2lbert.frameworks import FRAMEWORKS
from d2lbert.pytest_plugin import require
from d2lbert.recipes import INITIALIZATIONS, RECIPES, SCHEDULES
from d2lbert.runs import starting
from d2lbert.runs.config import Config
from helpers import (
    MAIN,
    ROOT,
    TINY,
    Done,
    assert_refused,
    finish,
    python,
    unix,
)

COMMANDS = (
    *('pretrain', 'chapter', 'evaluate', 'encode', 'fill', 'follows'),
    *('finetune', 'infer', 'parity', 'convert', 'doctor'),
)


@pytest.fixture
def pretrain(run, text_file):
    """Trains a tiny network for two steps."""

    def pretrain(*args):
        corpus = [] if '--corpus' in args else [f'--corpus={text_file}']
        return run('pretrain', *TINY, '--steps=2', *corpus, *args)

    return pretrain


@pytest.fixture
def folder(saved, backend_name):
    """The folder of a run; for all tests the same."""
    return saved(backend_name)


def new_python(*args, cwd=None):
    """Run a new Python, which looks for modules in `cwd` and then here."""
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        text=True,
        encoding='utf-8',
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        cwd=cwd,
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def assert_usage(done, *words):
    """The line of usage, and one that says what is wrong."""
    assert done.status == 2
    assert 'Usage: d2lbert' in done.err and 'Traceback' not in done.err
    for word in words:
        assert word in done.err


# ---- help ------------------------------------------------------------


def test_help_comes_at_once():
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = new_python('-m', 'd2lbert', '--help')
        seconds.append(time.perf_counter() - start)
        assert done.status == 0 and 'pretrain' in done.out
    assert min(seconds) < 0.5


def test_importing_imports_no_framework():
    done = new_python(
        '-c',
        'import sys, d2lbert, backends, d2lbert.cli, d2lbert.frameworks\n'
        'print({"numpy"} & set(sys.modules))\n'
        'import d2lbert.runs.run\n'
        'print({"torch", "mxnet", "matplotlib"} & set(sys.modules))',
    )
    assert done == (0, 'set()\nset()\n', '')


def test_every_field_of_config_is_an_option_with_help():
    for field in dataclasses.fields(Config):
        assert field.metadata['help'].endswith('.'), field.name
    about = {
        field.name: field.metadata for field in dataclasses.fields(Config)
    }
    assert about['backend']['metavar'].split('|') == list(FRAMEWORKS)
    assert about['recipe']['metavar'].split('|') == list(RECIPES)
    assert about['schedule']['metavar'].split('|') == list(SCHEDULES)
    assert about['initialization']['metavar'].split('|') == list(
        INITIALIZATIONS
    )
    assert about['precision']['metavar'].split('|') == list(PRECISIONS)


@pytest.mark.parametrize('command', [None, *COMMANDS])
def test_help_fits_eighty_columns(run, monkeypatch, command):
    monkeypatch.setenv('COLUMNS', '80')
    done = run(*filter(None, [command]), '--help')
    assert done.status == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert '...' not in done.out.replace('COMMAND [ARGS]...', '')


def test_help_lists_the_options_and_their_defaults(run):
    options = ' '.join(run('pretrain', '--help').out.split()).split(' --')
    for option, default in {
        '--backend': 'torch',
        '--recipe': "backend's own tab",
        '--corpus': 'sample',
        '--steps': '50',
        '--batch-size': '512',
        '--max-len': '64',
        '--num-hiddens': '128',
        '--ffn-num-hiddens': '256',
        '--num-heads': '2',
        '--num-blks': '2',
        '--dropout': '0.2',
        '--lr': '0.01',
        '--schedule': 'linear for bert',
        '--warmup': 'a tenth of the steps for bert',
        '--weight-decay': '0.01 for bert',
        '--clip-norm': '1 for bert',
        '--devices': 'all',
        '--micro-batch': '4,096 tokens',
        '--seed': '0',
        '--keep': '2',
        '--out': 'runs/',
    }.items():
        (help,) = (x for x in options if f'--{x}'.startswith(f'{option} '))
        assert default in help.partition('[default: ')[2]


def test_commands_offer_the_options_that_they_use(run):
    for command in ('chapter', 'parity'):
        out = ' '.join(run(command, '--help').out.split())
        assert '--batch-size' in out and '--backend ' not in out
        assert '--save-every' not in out and '--precision' not in out
    assert '[default: corrected]' in out


def test_nothing_asked_is_answered_with_help(run):
    done = run()
    assert 'pretrain' in done.out + done.err
    assert 'Traceback' not in done.err


# ---- pretrain --------------------------------------------------------


def test_pretrain(pretrain, backend_name, tmp_path):
    out = tmp_path / 'new' / 'run'
    done = pretrain('--backend', backend_name, '--out', out, '--json')
    assert done.status == 0
    *_, losses, speed, last = done.out.splitlines()
    results = json.loads(last)
    assert list(results) == [
        'backend',
        'recipe',
        'precision',
        'steps',
        'seed',
        'devices',
        'processes',
        'mlm_loss',
        'nsp_loss',
        'pairs_per_sec',
        'frequencies',
        'history',
    ]
    assert results['backend'] == backend_name
    assert results['steps'] == 2 and results['seed'] == 0
    assert all(isinstance(name, str) for name in results['devices'])
    mlm_loss, nsp_loss = np.mean(results['history'], axis=0)
    assert results['mlm_loss'] == pytest.approx(mlm_loss)
    assert results['nsp_loss'] == pytest.approx(nsp_loss)
    assert losses == f'MLM loss {mlm_loss:.3f}, NSP loss {nsp_loss:.3f}'
    pairs_per_sec = results['pairs_per_sec']
    assert speed.startswith(f'{pairs_per_sec:.1f} sentence pairs/sec on [')
    lines = (out / 'metrics.jsonl').read_text('utf-8').splitlines()
    metrics = [json.loads(line) for line in lines]
    assert results['history'] == [
        [step['mlm_loss'], step['nsp_loss']] for step in metrics
    ]
    names = {path.name for path in out.iterdir()}
    assert names >= {'losses.png', 'losses.svg', 'weights.safetensors'}
    assert str(out) in done.err


def test_pretrain_without_json_ends_with_the_two_lines(
    pretrain, backend_name, tmp_path
):
    done = pretrain('--backend', backend_name, '--out', tmp_path)
    assert re.fullmatch(
        r'MLM loss \d\.\d{3}, NSP loss \d\.\d{3}\n'
        r'\d+\.\d sentence pairs/sec on \[.+\]\n',
        done.out,
    )


def test_the_library_does_the_same(pretrain, train, backend_name, tmp_path):
    done = pretrain('--backend', backend_name, '--json', '--out', tmp_path)
    assert json.loads(done.out.splitlines()[-1])['history'] == (
        train(backend_name).history
    )


def test_every_option_reaches_the_run(pretrain, backend_name, tmp_path):
    done = pretrain(
        *('--backend', backend_name, '--recipe', 'corrected'),
        *('--steps', 3, '--batch-size', 9, '--max-len', 24),
        *('--num-hiddens', 12, '--ffn-num-hiddens', 20, '--num-heads', 3),
        *('--num-blks', 1, '--dropout', 0, '--lr', '2e-3', '--seed', 7),
        *('--devices', 'cpu:2', '--micro-batch', 4, '--out', tmp_path),
        *('--save-every', 2, '--keep', 3, '--precision', 'float32'),
        *('--tokenizer', 'words', '--vocab-size', 40),
        *('--preset', 'bert-large', '--checkpoint-blocks'),
        *('--schedule', 'linear', '--schedule-steps', 5, '--warmup', 2),
        *('--weight-decay', 0.1, '--clip-norm', 3),
        *('--initialization', 'torch'),
    )
    assert done.status == 0
    config = d2lbert.load_run(tmp_path).config.as_dict()
    del config['corpus']
    assert config == {
        'backend': backend_name,
        'recipe': 'corrected',
        'tokenizer': 'words',
        'vocab_size': 40,
        'steps': 3,
        'batch_size': 9,
        'preset': 'bert-large',
        'checkpoint_blocks': True,
        'max_len': 24,
        'num_hiddens': 12,
        'ffn_num_hiddens': 20,
        'num_heads': 3,
        'num_blks': 1,
        'dropout': 0,
        'lr': 0.002,
        'schedule': 'linear',
        'schedule_steps': 5,
        'warmup': 2,
        'weight_decay': 0.1,
        'clip_norm': 3,
        'initialization': 'torch',
        'devices': 'cpu:2',
        'micro_batch': 4,
        'seed': 7,
        'precision': 'float32',
        'save_every': 2,
        'keep': 3,
        'evaluate_every': None,
        'split': 'valid',
    }


@pytest.mark.slow
def test_without_out_each_run_has_a_folder(
    pretrain, backend_name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    args = ('--backend', backend_name, '--recipe', 'mxnet', '--steps=1')
    for _ in range(2):
        assert pretrain(*args).status == 0
    assert {path.name for path in (tmp_path / 'runs').iterdir()} == {
        f'{backend_name}-mxnet',
        f'{backend_name}-mxnet-2',
    }


@pytest.mark.slow
def test_at_once_without_out_each_run_has_a_folder(
    text_file, one_backend, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    args = ('pretrain', '--steps=1', *TINY, f'--corpus={text_file}')
    processes = [
        python(MAIN, *args, '--backend', one_backend) for _ in range(3)
    ]
    for done in map(finish, processes):
        assert done.status == 0, done.err
    folders = set((tmp_path / 'runs').iterdir())
    assert {path.name for path in folders} == {
        f'{one_backend}{number}' for number in ('', '-2', '-3')
    }
    assert all(len(d2lbert.load_run(path).steps) == 1 for path in folders)


def test_a_folder_that_is_taken_meanwhile(
    pretrain, one_backend, tmp_path, monkeypatch
):
    """Another process has it when the training would begin."""
    monkeypatch.chdir(tmp_path)
    folder = Path('runs') / one_backend
    locked = starting.locked

    def taken(out):
        folder.mkdir(exist_ok=True, parents=True)
        (folder / 'run.json').touch()
        return locked(out)

    monkeypatch.setattr(starting, 'locked', taken)
    assert pretrain('--backend', one_backend).status == 0
    assert len(d2lbert.load_run(f'{folder}-2').steps) == 2


def test_the_sample_is_the_default_corpus(run, backend_name, tmp_path):
    done = run(
        *('pretrain', *TINY, '--backend', backend_name, '--steps=1'),
        *('--out', tmp_path),
    )
    assert done.status == 0
    done = run('encode', tmp_path, 'a crane is flying')
    assert 'unknown' not in done.out


# ---- options that cannot be used -------------------------------------


@pytest.mark.parametrize(
    ('option', 'value', 'expected'),
    [
        ('--backend', 'numpy', "'jax', 'mxnet', 'torch'"),
        ('--backend', 'x' * 300, "'mxnet', 'torch'"),
        ('--recipe', 'keras', "'mxnet', 'pytorch', 'corrected', 'bert'"),
        ('--devices', 'nonsense', "'cpu:N'"),
        ('--devices', '', "'cpu:N'"),
        ('--devices', 'cpu:0', "'cpu:N'"),
        ('--devices', 'cpu:x', "'cpu:N'"),
        ('--devices', 'gpu', "'gpu:I,J'"),
        ('--devices', 'gpu:0,0', "'gpu:I,J'"),
        ('--devices', 'gpu:-1', "'gpu:I,J'"),
        ('--steps', '0', 'whole number from 1'),
        ('--steps', '-5', 'whole number from 1'),
        ('--batch-size', '0', 'whole number from 1'),
        ('--max-len', '4', 'choose 5 or more'),
        ('--max-len', '1001', 'at most 1000'),
        ('--num-hiddens', '-8', 'whole number from 1'),
        ('--ffn-num-hiddens', '0', 'whole number from 1'),
        ('--num-heads', '3', 'choose a divisor'),
        ('--num-heads', '0', 'whole number from 1'),
        ('--num-blks', '0', 'whole number from 1'),
        ('--dropout', '1.0', 'from 0 to below 1'),
        ('--dropout', '-0.1', 'from 0 to below 1'),
        ('--dropout', 'nan', 'from 0 to below 1'),
        ('--lr', '0', 'positive number'),
        ('--lr', '-0.01', 'positive number'),
        ('--lr', 'nan', 'positive number'),
        ('--lr', 'inf', 'positive number'),
        ('--lr', '1e999', 'positive number'),
        ('--lr', '1e-300', 'positive number'),
        ('--schedule', 'cosine', "'constant', 'linear'"),
        ('--schedule-steps', '9', 'a constant schedule has no end'),
        ('--warmup', '-1', 'whole number from 0'),
        ('--weight-decay', '-0.01', 'from 0 to 1'),
        ('--clip-norm', '-1', 'which clips nothing'),
        ('--initialization', 'zeros', "'truncated_normal'"),
        ('--micro-batch', '0', 'whole number from 1'),
        ('--seed', '-1', 'whole number from 0'),
        ('--save-every', '0', 'whole number from 1'),
        ('--keep', '1', 'whole number from 2'),
    ],
)
def test_a_value_that_cannot_be_used(
    pretrain, tmp_path, monkeypatch, option, value, expected
):
    monkeypatch.chdir(tmp_path)
    assert_refused(pretrain(option, value), expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('option', ['--steps', '--max-len', '--lr', '--seed'])
@pytest.mark.parametrize('value', ['many', '1.2.3', ''])
def test_a_value_that_is_no_number(pretrain, option, value):
    assert_usage(pretrain(option, value), option)


@pytest.mark.parametrize(
    ('args', 'word'),
    [
        (['pretrian'], 'pretrian'),
        (['pretrain', '--step', '5'], '--step'),
        (['pretrain', 'more'], 'more'),
        (['encode'], 'DIR'),
        (['encode', 'folder'], 'TEXT'),
        (['encode', 'folder', 'one', 'two', 'three'], 'three'),
    ],
)
def test_a_command_line_that_is_wrong(run, args, word):
    assert_usage(run(*args), word)


def test_more_devices_than_rows(pretrain, backend_name):
    done = pretrain('--backend', backend_name, '--devices', 'cpu:9')
    assert_refused(done, 'batch_size = 8', '9 devices')


def test_a_gpu_that_is_not_there(pretrain, backend_name):
    done = pretrain('--backend', backend_name, '--devices', 'gpu:4096')
    assert_refused(done, 'no GPU 4096', backend_name, "'cpu' or 'all'")


@pytest.mark.parametrize('corpus', ['nowhere.txt', '', 'x' * 300, 'a\nb'])
def test_a_corpus_that_is_not_there(pretrain, backend_name, tmp_path, corpus):
    done = pretrain(
        *('--backend', backend_name, '--out', tmp_path / 'run'),
        f'--corpus={corpus}',
    )
    assert_refused(done, repr(corpus), 'wikitext-2')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'', 'empty'),
        (b'only one sentence\n', 'yields no example'),
        (b'a crane . \xff\xfe . it flies', 'not UTF-8'),
        (b'PK\3\4 not really', 'give another copy'),
    ],
)
def test_a_corpus_that_is_none(
    pretrain, backend_name, tmp_path, content, words
):
    (tmp_path / 'text').write_bytes(content)
    done = pretrain(
        *('--backend', backend_name, '--corpus', tmp_path / 'text'),
        *('--out', tmp_path / 'run'),
    )
    assert_refused(done, words, status=1)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('out', ['file', 'file/run', 'x' * 300])
def test_an_out_folder_that_cannot_be(pretrain, backend_name, tmp_path, out):
    (tmp_path / 'file').write_text('mine')
    done = pretrain(
        *('--backend', backend_name, '--out', tmp_path / out),
        *('--steps', 10**9),
    )
    assert_refused(done, out, 'give another --out')
    assert (tmp_path / 'file').read_text() == 'mine'


def test_resume(pretrain, backend_name, tmp_path):
    first = ('--backend', backend_name, '--save-every', 1, '--out', tmp_path)
    assert pretrain(*first).status == 0
    assert_refused(pretrain(*first), 'holds a run already')
    done = pretrain('--resume', '--out', tmp_path, '--steps=4', '--json')
    assert done.status == 0
    results = json.loads(done.out.splitlines()[-1])
    assert results['steps'] == 4 and results['backend'] == backend_name
    done = pretrain('--resume', '--out', tmp_path, '--steps=4')
    assert done.status == 0 and 'there is nothing to do' in done.err
    assert 'd2lbert: the run in' in done.err
    assert 'MLM loss' in done.out and 'Warning' not in done.err


def test_resume_what_cannot_be(pretrain, backend_name, folder, tmp_path):
    def resume(*args):
        return pretrain('--backend', backend_name, '--resume', *args)

    assert_refused(resume(), '--out')
    assert_refused(resume('--out', tmp_path), 'holds no checkpoint')
    assert_refused(resume('--out', folder), 'no state of the optimizer')


def test_debug_shows_the_traceback(run, folder, monkeypatch):
    args = ('encode', folder, 'kranich')
    assert_refused(run(*args), 'no word of')
    done = run('--debug', *args)
    assert done.status == 2 and 'Traceback' in done.err
    assert done.err.splitlines()[-1].startswith('d2lbert: ')

    def broken(*args):
        raise TypeError('a mistake of ours')

    monkeypatch.setattr('d2lbert.runs.run.load_run', broken)
    assert_refused(run(*args), 'TypeError: a mistake', '--debug', status=1)
    assert 'in broken' in run('--debug', *args).err


def test_an_out_folder_that_holds_a_run(pretrain, backend_name, folder):
    before = (folder / 'run.json').read_bytes()
    done = pretrain('--backend', backend_name, '--out', folder)
    assert_refused(done, folder, 'holds a run already')
    assert (folder / 'run.json').read_bytes() == before


def test_a_training_that_diverges(pretrain, backend_name, tmp_path):
    done = pretrain(
        *('--backend', backend_name, '--lr', '1e30', '--steps', 9),
        *('--out', tmp_path, '--json'),
    )
    assert done.status == 1 and done.out == ''
    last = done.err.splitlines()[-1]
    assert last.startswith('d2lbert: the training diverged at step ')
    assert 'Traceback' not in done.err
    assert [path.name for path in tmp_path.iterdir()] == ['.lock']


# ---- fill and follows ------------------------------------------------


def test_fill_and_draw(run, folder, tmp_path):
    args = ('fill', folder, 'a <mask> is flying', 'the <mask> kranich')
    png = tmp_path / 'bars.png'
    done = run(*args, '--top', 3, '--out', png, '--json')
    unknown, first, *lines, last = done.out.splitlines()
    assert (unknown, first) == ('kranich  (unknown)', 'mask 1')
    assert len(lines) == 3 + 1 + 3
    results = json.loads(last)
    assert results['positions'] == [2, 7]
    assert np.shape(results['probabilities']) == (2, 3)
    assert png.read_bytes().startswith(b'\x89PNG')
    assert_refused(run(*args, '--out', png), 'exists already')
    assert run(*args, '--out', png, '--force').status == 0


def test_follows_is_a_probability(run, folder):
    done = run('follows', folder, 'a crane driver came', 'he left', '--json')
    results = json.loads(done.out.splitlines()[-1])
    assert list(results) == ['follows', 'does_not']
    assert sum(results.values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (['a crane'], 'has no mask'),
        (['a <mask>', '--top', 0], 'top = 0'),
        (['a <mask>', '--out', 'bars.svg'], 'ends in .png'),
        (['a <mask>', '--out', 'missing/bars.png'], 'cannot be written'),
    ],
)
def test_what_cannot_be_filled(run, folder, args, words):
    assert_refused(run('fill', folder, *args), words)


# ---- encode ----------------------------------------------------------


def test_encode_a_sentence(run, folder):
    done = run('encode', folder, 'A crane is flying', '--json')
    assert done.status == 0 and done.err == ''
    first, *lines, last = done.out.splitlines()
    assert first == 'encoded text (1, 6, 8), <cls> (1, 8)'
    result = json.loads(last)
    assert ' '.join(result['tokens']) == '<cls> a crane is flying <sep>'
    assert result['shape'] == [6, 8] == list(np.shape(result['features']))
    expected = zip(result['tokens'], result['features'], strict=True)
    for line, (token, features) in zip(lines, expected, strict=True):
        shown, *values = line.removesuffix(' …').split()
        assert shown == token
        assert list(map(float, values)) == pytest.approx(
            features[:3], abs=1e-4
        )


def test_encode_a_pair(run, folder):
    done = run('encode', folder, 'a crane driver came', 'he just left')
    first, *lines = done.out.splitlines()
    assert first == 'encoded text (1, 10, 8), <cls> (1, 8)'
    assert len(lines) == 10
    assert 'driver' in lines[3] and '(unknown)' not in lines[2]


def test_encode_is_represent(run, folder):
    done = run('encode', folder, 'a crane', 'he left', '--json')
    features = json.loads(done.out.splitlines()[-1])['features']
    kept = d2lbert.load_run(folder)
    (X,) = d2lbert.represent(kept.net, kept.vocab, [('a crane', 'he left')])
    np.testing.assert_allclose(features, X, atol=1e-5)


def test_all_frameworks_encode_alike(run, all_tabs, folder):
    features = []
    for tab in all_tabs:
        done = run(
            *('encode', folder, 'a crane is flying', '--json'),
            *('--backend', tab.BACKEND.name),
        )
        features.append(json.loads(done.out.splitlines()[-1])['features'])
    for theirs in features[1:]:
        np.testing.assert_allclose(theirs, features[0], atol=1e-5)


def test_encode_into_a_file(run, folder, tmp_path):
    (tmp_path / 'features').write_text('something older')
    for name in ('features', 'features.npy'):
        done = run(
            *('encode', folder, 'a crane', '--json'),
            *('--force', '--npy', tmp_path / name),
        )
        X = np.load(tmp_path / name, allow_pickle=False)
        assert X.dtype == np.float32 and X.shape == (4, 8)
        result = json.loads(done.out.splitlines()[-1])
        assert np.array_equal(X, np.float32(result['features']))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_is_not_replaced_unless_that_is_said(run, folder, tmp_path):
    path, link = tmp_path / 'features', tmp_path / 'link'
    path.write_text('mine')
    link.symlink_to(tmp_path / 'nowhere')
    for commands in (
        ('encode', folder, 'a crane', '--npy'),
        ('convert', folder, '--to=safetensors', '--out'),
    ):
        for name in (path, link):
            assert_refused(run(*commands, name), name, 'exists already')
        assert path.read_text() == 'mine' and link.is_symlink()
        assert_refused(run(*commands, tmp_path, '--force'), 'is not a file')
        assert run(*commands, path, '--force').status == 0
        assert path.read_bytes() != b'mine'
        path.write_text('mine')


@pytest.mark.parametrize('name', ['.', 'nowhere/x.npy', 'x' * 300])
def test_a_file_that_cannot_be_written(run, folder, tmp_path, name):
    done = run('encode', folder, 'a crane', '--npy', tmp_path / name)
    assert_refused(done, 'give another --npy')
    assert not list(tmp_path.iterdir())


def test_unknown_words_are_marked(run, folder):
    done = run('encode', folder, 'a kranich is flying')
    marked = [x.split()[0] for x in done.out.splitlines() if 'unkn' in x]
    assert marked == ['kranich']


@pytest.mark.parametrize(
    ('texts', 'words'),
    [
        ([''], 'no words'),
        ([' \n '], 'no words'),
        (['a crane', ''], 'no words'),
        (['kranich'], 'no word of'),
        (['crane ' * 2000], 'cut 1002 words'),
    ],
)
def test_a_text_that_cannot_be_encoded(run, folder, tmp_path, texts, words):
    npy = tmp_path / 'x.npy'
    assert_refused(run('encode', folder, *texts, '--npy', npy), words)
    assert not npy.exists()


def test_a_backend_that_there_is_not(run, folder):
    done = run('encode', folder, 'a crane', '--backend', 'numpy')
    assert_refused(done, "'numpy'", "'mxnet'", "'torch'")


@pytest.mark.parametrize('name', ['nowhere', 'file', '.', 'x' * 300])
def test_a_folder_without_a_run(run, tmp_path, name):
    (tmp_path / 'file').write_text('')
    done = run('encode', tmp_path / name, 'a crane')
    assert_refused(done, 'holds no run', 'd2lbert pretrain --out')


def test_a_folder_with_a_damaged_run(run, tmp_path):
    (tmp_path / 'run.json').write_text('{"format": 1, "config')
    done = run('encode', tmp_path, 'a crane')
    assert_refused(done, tmp_path, 'cannot be read', status=1)


def test_an_output_that_knows_no_unicode(run, folder, monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), 'ascii')
    monkeypatch.setattr(sys, 'stdout', output)
    assert run('encode', folder, 'a crané \udcff').status == 0
    output.seek(0)
    assert r'cran\xe9' in output.read()


# ---- chapter and doctor ----------------------------------------------


@pytest.mark.slow
def test_chapter(run, all_tabs, text_file, tmp_path):
    args = (
        *('chapter', '--steps=2', '--batch-size=8', '--max-len=32'),
        *(f'--corpus={text_file}', '--devices=cpu', '--out', tmp_path),
    )
    done = run(*args)
    assert done.status == 0
    out = done.out
    assert out.count('MLM loss') == out.count('sentence pairs/sec on') == 3
    assert 'JAX (recipe corrected)' in out
    assert 'MXNet (recipe mxnet)' in out
    assert 'PyTorch (recipe pytorch)' in out
    assert f'Loss curves: {tmp_path / "losses.png"}' in out
    assert {path.name for path in tmp_path.iterdir()} == {
        'losses.png',
        'losses.svg',
        'jax',
        'mxnet',
        'torch',
    }
    assert d2lbert.load_run(tmp_path / 'torch').config.num_hiddens == 128
    (tmp_path / 'mxnet').rename(tmp_path / 'moved')
    # What is there already is seen before anything is trained
    assert_refused(run(*args), tmp_path / 'jax', 'holds a run already')


def test_a_chapter_without_a_picture(run, all_tabs, text_file, tmp_path):
    def draw(*_, **__):
        raise ValueError('no such backend')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('d2lbert.runs.display.draw_losses', draw)
        done = run(
            *('chapter', '--steps=1', '--batch-size=8', '--max-len=32'),
            *(f'--corpus={text_file}', '--devices=cpu', '--out', tmp_path),
        )
    assert done.status == 0
    assert done.err.count('not be drawn: no such backend') == 4
    assert done.out.count('MLM loss') == 3 and 'curves' not in done.out
    assert len(d2lbert.load_run(tmp_path / 'mxnet').history) == 1


def test_chapter_is_not_drawn_over_a_run(run, both_tabs, saved):
    folder = saved('torch')
    before = (folder / 'losses.png').read_bytes()
    assert_refused(run('chapter', '--out', folder), 'holds a run already')
    assert (folder / 'losses.png').read_bytes() == before


def test_an_empty_path_is_not_the_folder_one_is_in(run):
    for args in (
        ('pretrain', '--out', ''),
        ('chapter', '--out', ''),
        ('parity', '--out', ''),
        ('encode', '', 'a crane'),
        ('convert', '', '--to', 'safetensors', '--out', 'x'),
    ):
        done = run(*args)
        assert done.status == 2 and "'' is empty, expected a path" in done.err


@unix
@pytest.mark.slow
@pytest.mark.parametrize('redirection', ['2>/dev/full', '2>&-'])
def test_a_training_does_without_its_progress_bar(
    text_file, tmp_path, redirection, one_backend
):
    options = (
        f"--backend={one_backend} --corpus='{text_file}' --steps=1 "
        '--batch-size=8 --num-hiddens=8 --out=run'
    )
    subprocess.run(
        f"'{sys.executable}' -m d2lbert pretrain {options} {redirection}",
        shell=True,
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        stdout=subprocess.DEVNULL,
        timeout=120,
    )
    assert len(d2lbert.load_run(tmp_path / 'run').steps) == 1


def test_a_batch_larger_than_the_corpus(pretrain, tmp_path, one_backend):
    done = pretrain(
        *('--backend', one_backend, '--batch-size=100000'),
        *('--out', tmp_path / 'run'),
    )
    assert done.status == 0
    assert re.search(
        r'^d2lbert: batch_size = 100000: the corpus makes \d+ examples',
        done.err,
        re.M,
    )


def test_a_folder_that_was_made_in_vain_goes_again(
    pretrain, tmp_path, one_backend
):
    done = pretrain(
        '--backend', one_backend, '--lr=1e29', '--out', tmp_path / 'run'
    )
    assert done.status == 1 and 'diverged' in done.err
    assert not (tmp_path / 'run').exists()


# ---- frameworks that are not installed -------------------------------

HIDING = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition('.')[0] not in {hidden}:
            return super().find_spec(name, path, target)

sys.meta_path = [
    Hiding if finder is PathFinder else finder for finder in sys.meta_path
]
"""


def without(*hidden):
    """Return the code of the command where packages are not installed."""
    return HIDING.format(hidden=hidden) + MAIN


@pytest.mark.parametrize('missing', FRAMEWORKS)
def test_a_framework_that_is_not_installed(text_file, tmp_path, missing):
    out = tmp_path / 'run'
    done = new_python(
        *('-c', without(missing), 'pretrain', *TINY, '--steps=1'),
        *(f'--corpus={text_file}', '--backend', missing, '--out', out),
    )
    assert_refused(done, missing, f"pip install '.[{missing}]'")
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('missing', 'other'), [('torch', 'mxnet'), ('mxnet', 'torch')]
)
def test_a_framework_does_without_the_other(
    saved, text_file, tmp_path, missing, other
):
    require(other)
    done = new_python(
        *('-c', without(missing), 'encode', saved(other), 'a crane'),
        *('--backend', missing),
    )
    assert_refused(done, missing, f"pip install '.[{missing}]'")
    done = new_python(
        *('-c', without(missing), 'pretrain', *TINY, '--steps=1'),
        *(f'--corpus={text_file}', '--backend', other),
        *('--out', tmp_path / 'run'),
    )
    assert done.status == 0 and 'MLM loss' in done.out


def test_no_framework_at_all():
    done = new_python('-c', without('torch', 'mxnet', 'jax'), 'chapter')
    assert_refused(done, '.[torch]', '.[mxnet]', '.[jax]')


# ---- a stranger's package `backends` ---------------------------------

CATCH = """
try:
    {code}
except ImportError as error:
    print(error)
"""
STRANGERS = {
    'a package': 'backends/__init__.py',
    'a module': 'backends.py',
}


@pytest.fixture(params=STRANGERS.values(), ids=STRANGERS)
def stranger(request, tmp_path):
    """A file that hides our `backends`, and fails where it is imported."""
    path = tmp_path / request.param
    path.parent.mkdir(exist_ok=True)
    path.write_text('raise OSError\n')
    return path


@pytest.mark.parametrize(
    'code',
    [
        'import d2lbert; d2lbert.pretrain',
        'from d2lbert import torch',
        'from d2lbert import mxnet as d2l',
        'from d2lbert.frameworks import load_tab; load_tab("torch")',
    ],
)
def test_another_package_backends(stranger, tmp_path, code):
    done = new_python('-c', CATCH.format(code=code), cwd=tmp_path)
    assert done.status == 0 and done.out.count('\n') == 1
    for words in (
        stranger,
        f'expected at {ROOT / "backends"}',
        'rename what hides it',
    ):
        assert str(words) in done.out


@pytest.mark.parametrize('args', [('--help',), ('encode', 'x', 'y')])
def test_the_command_beside_another_package_backends(
    stranger, tmp_path, args
):
    done = new_python('-m', 'd2lbert', *args, cwd=tmp_path)
    assert_refused(done, stranger, ROOT / 'backends', 'rename what hides it')


def test_a_folder_backends_without_code_hides_nothing(tmp_path):
    (tmp_path / 'backends').mkdir()
    done = new_python('-c', 'import d2lbert; d2lbert.pretrain', cwd=tmp_path)
    assert done == (0, '', '')


def test_a_folder_that_hides_an_editable_installation(tmp_path, monkeypatch):
    spec = ModuleSpec('backends', None)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(frameworks, 'find_spec', lambda name: spec)
    with pytest.raises(
        errors.BackendsError, match='rename what hides it'
    ) as caught:
        frameworks.check_package()
    assert str(tmp_path) in str(caught.value)
    monkeypatch.setattr(frameworks, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match='finds nothing'):
        frameworks.check_package()


def test_the_registry_has_each_backend_and_its_recipe():
    assert tuple(FRAMEWORKS) == backends.names()
    for name, framework in FRAMEWORKS.items():
        assert framework.name == name and framework.recipe in RECIPES
