"""Runs: trained, kept in a folder, read back, and never half."""

import json
import math
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import d2lbert
from d2lbert.data.files import NO_CHECKSUM, seal
from d2lbert.data.vocab import Vocab
from d2lbert.errors import (
    CorpusError,
    InputError,
    RunError,
    RunWarning,
)
from d2lbert.frameworks import FRAMEWORKS
from d2lbert.recipes import RECIPES
from d2lbert.runs import display
from d2lbert.runs.config import Config
from d2lbert.runs.folder import read_manifest, to_manifest
from d2lbert.runs.run import Run
from d2lbert.runs.trained import (
    METRICS_FILE,
    RUN_FILE,
    VOCAB_FILE,
    WEIGHTS_FILE,
)
from d2lbert.trainer import Trainer
from d2lbert.weights import get_weights, set_weights
from helpers import assert_refused, same_weights, write_text

FILES = {RUN_FILE, METRICS_FILE, WEIGHTS_FILE, VOCAB_FILE}


@pytest.fixture
def folder(saved, one_backend, tmp_path):
    """A folder with a run, to do anything with."""
    return Path(shutil.copytree(saved(one_backend), tmp_path / 'run'))


def names(folder):
    return {path.name for path in folder.iterdir()}


# ---- training --------------------------------------------------------


def test_the_defaults_are_the_chapters():
    assert Config().as_dict() == {
        'backend': 'torch',
        'recipe': 'pytorch',
        'corpus': 'sample',
        'tokenizer': 'words',
        'vocab_size': None,
        'steps': 50,
        'batch_size': 512,
        'preset': 'chapter',
        'max_len': 64,
        'num_hiddens': 128,
        'ffn_num_hiddens': 256,
        'num_heads': 2,
        'num_blks': 2,
        'dropout': 0.2,
        'lr': 0.01,
        'schedule': 'constant',
        'schedule_steps': None,
        'warmup': 0,
        'weight_decay': 0.0,
        'clip_norm': 0.0,
        'initialization': 'torch',
        'devices': 'all',
        'micro_batch': None,
        'checkpoint_blocks': False,
        'seed': 0,
        'precision': 'float32',
        'save_every': None,
        'keep': 2,
        'evaluate_every': None,
        'split': 'valid',
    }
    assert Config(backend='mxnet').recipe == 'mxnet'
    assert Config(recipe='corrected', lr=None).lr == 0.01


def test_a_run_has_network_vocabulary_and_history(
    train, backend, backend_name
):
    run = train(backend_name, steps=3)
    assert isinstance(run.net, backend.Module)
    assert isinstance(run.vocab, Vocab) and 'crane' in run.vocab.token_to_idx
    assert len(run.history) == 3
    assert all(len(pair) == 2 for pair in run.history)
    mlm_loss, nsp_loss = np.mean(run.history, axis=0)
    results = run.results()
    assert results['mlm_loss'] == pytest.approx(mlm_loss)
    assert results['nsp_loss'] == pytest.approx(nsp_loss)
    assert results['backend'] == backend_name
    assert results['recipe'] == FRAMEWORKS[backend_name].recipe
    assert re.fullmatch(
        rf'MLM loss {mlm_loss:.3f}, NSP loss {nsp_loss:.3f}\n'
        r'[0-9]+\.[0-9] sentence pairs/sec on \[.*(cpu|Cpu).*\]',
        run.summary(),
    )


def test_the_first_losses_are_near_chance(train, backend_name):
    run = train(backend_name, steps=1, batch_size=64, recipe='mxnet')
    assert run.mlm_loss == pytest.approx(math.log(len(run.vocab)), rel=0.2)
    assert run.nsp_loss == pytest.approx(math.log(2), rel=0.2)


def test_the_seed_decides_everything(train, backend_name):
    first, second = (train(backend_name, seed=3) for _ in range(2))
    assert first.history == second.history
    assert same_weights(get_weights(first.net), get_weights(second.net))
    assert train(backend_name, seed=4).history != first.history


@pytest.mark.slow
@pytest.mark.parametrize('recipe', RECIPES)
def test_all_frameworks_train_alike(train, all_tabs, recipe):
    first, *others = (
        train(tab.BACKEND.name, recipe=recipe, steps=5).history
        for tab in all_tabs
    )
    for history in others:
        np.testing.assert_allclose(history, first, rtol=0, atol=1e-3)


def test_shards_and_micro_batches_change_nothing(train, backend_name):
    whole, cut = (
        train(backend_name, recipe='corrected', **options)
        for options in ({}, {'devices': 'cpu:3', 'micro_batch': 2})
    )
    assert len(cut.devices) == 3
    np.testing.assert_allclose(cut.history, whole.history, atol=1e-4)


def test_learning_is_by_the_learning_rate(train, backend_name):
    default, same_lr, other_lr = (
        train(backend_name, lr=lr).history for lr in (None, 0.01, 0.02)
    )
    assert default == same_lr != other_lr


def test_more_rows_than_examples_are_all_examples(train, one_backend):
    with pytest.warns(RunWarning, match=r'makes \d+ examples, and each'):
        run = train(one_backend, batch_size=10**6, steps=1)
    assert 0 < run.steps[0].num_pairs < 1000


# ---- bad input -------------------------------------------------------


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('backend', 'tensorflow'),
        ('backend', None),
        ('recipe', 'keras'),
        ('corpus', 5),
        ('corpus', None),
        ('devices', 'tpu'),
        ('devices', 'cpu:0'),
        ('devices', 0),
        ('steps', 0),
        ('steps', 2.5),
        ('steps', None),
        ('steps', True),
        ('dropout', False),
        ('lr', True),
        ('seed', False),
        ('batch_size', -1),
        ('max_len', 4),
        ('max_len', 1001),
        ('max_len', 64.0),
        ('max_len', '64'),
        ('num_hiddens', 0),
        ('ffn_num_hiddens', 0),
        ('num_heads', 3),
        ('num_heads', 0),
        ('num_blks', 0),
        ('dropout', 1),
        ('dropout', -0.1),
        ('dropout', math.nan),
        ('dropout', '0.1'),
        ('dropout', None),
        ('lr', 0),
        ('lr', -0.01),
        ('lr', math.nan),
        ('lr', math.inf),
        ('lr', '0.01'),
        ('schedule', 'cosine'),
        ('schedule', 5),
        ('schedule_steps', 0),
        ('warmup', -1),
        ('warmup', 0.1),
        ('weight_decay', -0.1),
        ('weight_decay', 1.1),
        ('weight_decay', math.nan),
        ('weight_decay', '0.1'),
        ('clip_norm', -1),
        ('clip_norm', math.nan),
        ('clip_norm', math.inf),
        ('clip_norm', True),
        ('initialization', 'zeros'),
        ('micro_batch', 0),
        ('checkpoint_blocks', 1),
        ('preset', 'bert-huge'),
        ('seed', -1),
        ('seed', None),
        ('save_every', 0),
        ('save_every', 'often'),
        ('keep', 1),
        ('keep', None),
    ],
)
def test_an_option_that_cannot_be_used(option, value):
    with pytest.raises(InputError, match=re.escape(str(value))) as info:
        Config(**{option: value})
    assert option in str(info.value)


def test_an_option_that_there_is_not():
    with pytest.raises(TypeError, match='learning_rate'):
        d2lbert.pretrain(learning_rate=0.1)


def test_more_devices_than_rows(train, one_backend):
    with pytest.raises(InputError, match=r'batch_size = 2 .* 3 devices'):
        train(one_backend, batch_size=2, devices='cpu:3')


def test_a_text_without_examples(train, one_backend, tmp_path):
    (tmp_path / 'short.txt').write_text('one sentence .\n')
    with pytest.raises(CorpusError, match='no example'):
        train(
            one_backend, corpus=tmp_path / 'short.txt', out=tmp_path / 'run'
        )
    assert not (tmp_path / 'run').exists()


def test_a_training_that_diverges_keeps_nothing(
    train, backend_name, tmp_path
):
    with pytest.raises(RunError, match=r'diverged at step .* smaller --lr'):
        train(backend_name, lr=1e30, steps=9, out=tmp_path)
    assert names(tmp_path) == {'.lock'}


def test_numbers_that_are_not_finite_are_neither_written_nor_read(
    train, backend_name, tmp_path
):
    run = train(backend_name)
    run.save(tmp_path / 'run')
    weights = get_weights(run.net)
    weights['hidden.0.weight'][1, 2] = math.nan
    set_weights(run.net, weights)
    with pytest.raises(RunError, match=r'not finite \(hidden\.0\.weight\)'):
        run.save(tmp_path / 'new')
    assert not (tmp_path / 'new').exists()
    # As d2lbert has written it once
    path = tmp_path / 'run' / RUN_FILE
    record, files = read_manifest(path)
    files[WEIGHTS_FILE] = save(weights)
    (tmp_path / 'run' / WEIGHTS_FILE).write_bytes(files[WEIGHTS_FILE])
    path.write_bytes(to_manifest(record, files))
    with pytest.raises(RunError, match=r'not finite \(hidden\.0\.weight\)'):
        d2lbert.load_run(tmp_path / 'run')


# ---- the folder ------------------------------------------------------


def test_a_folder_holds_what_was_trained(folder):
    pictures = {'losses.png', 'losses.svg'}
    assert names(folder) == FILES | pictures | {'.lock'}
    assert (folder / 'losses.png').read_bytes().startswith(b'\x89PNG')
    assert '<svg' in (folder / 'losses.svg').read_text('utf-8')
    lines = (folder / METRICS_FILE).read_text('utf-8').splitlines()
    metrics = [json.loads(line) for line in lines]
    results = json.loads((folder / RUN_FILE).read_bytes())['results']
    assert [entry['step'] for entry in metrics] == [1, 2]
    assert results['history'] == [
        [entry['mlm_loss'], entry['nsp_loss']] for entry in metrics
    ]
    assert all(
        entry['num_pairs'] == 8 and entry['seconds'] > 0 for entry in metrics
    )


def test_reading_a_run_back(train, backend_name, tmp_path):
    run = train(backend_name, out=tmp_path)
    again = d2lbert.load_run(tmp_path)
    assert again.config == run.config
    assert again.history == run.history
    assert again.results() == run.results()
    assert again.frequencies == run.frequencies != {}
    assert again.vocab.idx_to_token == run.vocab.idx_to_token
    assert same_weights(get_weights(again.net), get_weights(run.net))
    assert type(again.net) is type(run.net)


def test_a_run_that_was_read_keeps_where_it_was_trained(
    train, backend_name, tmp_path, monkeypatch
):
    train(backend_name, devices='cpu:2', out=tmp_path / 'run')
    again = d2lbert.load_run(tmp_path / 'run')
    assert again.results()['devices'] == again.devices
    assert len(again.devices) == 2
    assert str(again.devices) in again.summary()
    # Its framework may be missing by now: nothing asks for its version
    monkeypatch.delattr('d2lbert.runs.trained.versions')
    again.save(tmp_path / 'copy')
    records = [
        json.loads((tmp_path / name / RUN_FILE).read_bytes())
        for name in ('run', 'copy')
    ]
    del records[0]['sha256'], records[1]['sha256']
    assert records[0] == records[1]


def test_reading_a_run_in_another_framework(train, all_tabs, tmp_path):
    for tab, other in zip(all_tabs, all_tabs[::-1], strict=True):
        out = tmp_path / tab.BACKEND.name
        run = train(tab.BACKEND.name, out=out)
        again = d2lbert.load_run(out, backend=other.BACKEND.name)
        assert isinstance(again.net, other.BERTModel)
        assert same_weights(get_weights(again.net), get_weights(run.net))


def test_a_run_is_not_overwritten(train, one_backend, folder):
    before = (folder / RUN_FILE).read_bytes()
    run = train(one_backend)
    with pytest.raises(InputError, match='holds a run already'):
        run.save(folder)
    with pytest.raises(InputError, match='holds a run already'):
        train(one_backend, out=folder, steps=10**9)
    assert (folder / RUN_FILE).read_bytes() == before


def test_a_folder_with_other_things_is_fine(train, one_backend, tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    train(one_backend, out=tmp_path)
    assert d2lbert.load_run(tmp_path).history
    assert (tmp_path / 'notes.txt').read_text() == 'mine'


@pytest.mark.parametrize(
    'name', sorted({*FILES, 'losses.png', 'losses.svg', '.lock'})
)
@pytest.mark.parametrize('kind', ['file', 'link'])
def test_a_users_own_file_is_not_replaced(
    train, one_backend, tmp_path, name, kind
):
    mine, out = tmp_path / 'mine', tmp_path / 'out'
    mine.write_text('mine')
    out.mkdir()
    path = out / name
    path.symlink_to(mine) if kind == 'link' else path.write_text('mine')
    with pytest.raises(InputError, match=f'{name} .* another --out|a run al'):
        train(one_backend, out=out, steps=10**9)
    assert path.read_text() == mine.read_text() == 'mine'
    assert names(out) <= {name, '.lock'}


def test_a_link_with_the_name_of_an_unfinished_file(
    train, one_backend, tmp_path
):
    """Neither followed nor removed, as every file that is not ours."""
    (tmp_path / 'mine').write_text('mine')
    links = [tmp_path / f'{name}.part' for name in FILES]
    for link in links:
        link.symlink_to(tmp_path / 'mine')
    train(one_backend, out=tmp_path)
    assert {link.read_text() for link in links} == {'mine'}


@pytest.mark.parametrize('save_every', [None, 1])
def test_a_folder_that_another_training_has_made_again(
    train, one_backend, tmp_path, monkeypatch, save_every
):
    out, launch = tmp_path / 'run', Trainer.launch

    def replaced(self, batch):
        monkeypatch.undo()
        shutil.rmtree(out)
        train(one_backend, out=out, seed=5)
        return launch(self, batch)

    monkeypatch.setattr(Trainer, 'launch', replaced)
    with pytest.raises(
        RunError, match=r'removed or replaced.*cannot be kept'
    ):
        train(one_backend, out=out, save_every=save_every)
    assert d2lbert.load_run(out).config.seed == 5
    assert names(out) == FILES | {'losses.png', 'losses.svg', '.lock'}


def test_a_folder_that_is_removed(train, one_backend, tmp_path, monkeypatch):
    out, draw = tmp_path / 'run', Run.draw

    def removed(*args):
        shutil.rmtree(out)
        draw(*args)

    monkeypatch.setattr(Run, 'draw', removed)
    with pytest.raises(RunError, match='removed or replaced'):
        train(one_backend, out=out)
    assert not out.exists()


@pytest.mark.parametrize('out', ['file', 'file/run', 'x' * 300])
def test_an_out_folder_that_cannot_be_is_noticed_before_training(
    train, one_backend, tmp_path, out
):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(InputError, match='give another --out'):
        train(one_backend, out=tmp_path / out, steps=10**9)
    assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.skipif(
    not hasattr(os, 'geteuid') or os.geteuid() == 0,
    reason='root may write everywhere',
)
def test_a_read_only_folder_is_noticed_before_training(
    train, one_backend, tmp_path
):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match='Permission denied'):
        train(one_backend, out=tmp_path, steps=10**9)


def test_a_disk_that_fills_up_leaves_no_run(train, one_backend, tmp_path):
    resource = pytest.importorskip('resource')
    run = train(one_backend)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(RunError, match='could not be written'):
            run.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob('*.part'))
    with pytest.raises(InputError, match='holds no run'):
        d2lbert.load_run(tmp_path)
    run.save(tmp_path)
    assert d2lbert.load_run(tmp_path).history == run.history


@pytest.mark.parametrize('name', ['nowhere', 'file', 'file/run', 'x' * 300])
def test_a_folder_without_a_run(tmp_path, name):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match=r'holds no run.*d2lbert pretrain'):
        d2lbert.load_run(tmp_path / name)


# ---- damage ----------------------------------------------------------


def flipped(data, rng):
    offset = rng.randrange(len(data))
    changed = bytearray(data)
    changed[offset] ^= 1 << rng.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize('name', sorted(FILES))
def test_damage_is_noticed(folder, name):
    path, rng = folder / name, random.Random(0)
    whole = path.read_bytes()
    damaged = [
        b'',
        b'\0' * len(whole),
        whole + b'0',
        *(whole[: rng.randrange(len(whole) - 1)] for _ in range(20)),
        *(flipped(whole, rng) for _ in range(100)),
    ]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(RunError):
            d2lbert.load_run(folder)
    path.write_bytes(whole)
    assert d2lbert.load_run(folder)


@pytest.mark.parametrize('name', sorted(FILES - {RUN_FILE}))
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(RunError, match=re.escape(name)):
        d2lbert.load_run(folder)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes here')
@pytest.mark.parametrize('name', sorted(FILES))
def test_a_pipe_is_no_run(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises((InputError, RunError), match=r'no run|not a regular'):
        d2lbert.load_run(folder)


@pytest.mark.parametrize(
    'content', ['[]', 'null', '5', '{}', '{"format": 2}', '[' * 100_000]
)
def test_a_manifest_that_is_something_else(tmp_path, content):
    (tmp_path / RUN_FILE).write_text(content)
    with pytest.raises(RunError, match='cannot be read'):
        d2lbert.load_run(tmp_path)


def test_a_newer_format_is_named(tmp_path):
    (tmp_path / RUN_FILE).write_text('{"format": 9}')
    with pytest.raises(RunError, match='format 9, this d2lbert reads 2'):
        d2lbert.load_run(tmp_path)


def test_a_run_of_a_newer_version_is_named(folder):
    path = folder / RUN_FILE
    record, files = read_manifest(path)
    record['config']['flavour'] = 'vanilla'
    path.write_bytes(to_manifest(record, files))
    with pytest.raises(
        RunError, match=r'flavour.*use the d2lbert that wrote'
    ):
        d2lbert.load_run(folder)


@pytest.mark.parametrize('depth', [60, 500, 900, 950, 1000, 2000])
def test_a_manifest_that_is_nested_deeply(folder, run, depth):
    path = folder / RUN_FILE
    record, files = read_manifest(path)
    data = to_manifest({**record, 'versions': NO_CHECKSUM[1:]}, files)
    for checksum in re.findall(b'(?<=sha256": ")[0-9a-f]{64}', data)[:1]:
        data = data.replace(checksum, NO_CHECKSUM.encode())
    nested = b'[' * depth + b']' * depth
    data = data.replace(b'"%s"' % NO_CHECKSUM[1:].encode(), nested)
    path.write_bytes(b''.join(seal(data)))
    for args in (['encode', folder, 'a crane'],):
        assert_refused(run(*args), 'copy it again', status=1)


def test_options_edited_by_hand_are_noticed(folder):
    path = folder / RUN_FILE
    path.write_text(
        path.read_text().replace('"num_heads": 2', '"num_heads": 4')
    )
    with pytest.raises(RunError, match='not as it was written'):
        d2lbert.load_run(folder)


# ---- the picture -----------------------------------------------------


def test_the_picture_says_what_was_run(folder):
    svg = (folder / 'losses.svg').read_text('utf-8')
    # Matplotlib writes each text as a comment beside its outlines
    texts = ' '.join(re.findall('<!-- (.*) -->', svg))
    for text in ('cranes.txt', 'seed 0', 'recipe', 'Next sentence', 'chance'):
        assert text in texts


def test_a_picture_that_fails_costs_no_run(
    train, one_backend, tmp_path, monkeypatch
):
    def draw(*_, **__):
        raise ValueError('no such backend')

    monkeypatch.setattr('d2lbert.runs.display.draw_losses', draw)
    with pytest.warns(RunWarning, match='not be drawn: no such backend'):
        run = train(one_backend, out=tmp_path)
    assert d2lbert.load_run(tmp_path).history == run.history


def test_a_strange_file_name_is_no_formula(train, one_backend, tmp_path):
    path = write_text(tmp_path / r'$\nothing{ <&>.txt')
    train(one_backend, corpus=path, out=tmp_path / 'run')
    assert (tmp_path / 'run' / 'losses.svg').stat().st_size
    assert Path(d2lbert.load_run(tmp_path / 'run').config.corpus) == path


def test_a_file_name_that_is_not_utf8_can_be_drawn():
    assert b'nes.txt' in Config(corpus='cr\udce0nes.txt').title().encode()


@pytest.mark.parametrize('precision', ['tf32', 'bf16'])
def test_inexact_precision_is_refused_without_a_card(
    train, backend_name, precision, monkeypatch
):
    monkeypatch.setattr('backends.processor.bf16_instructions', lambda: None)
    with pytest.raises(
        InputError, match=f'in {precision}|CUDA|this processor'
    ):
        train(backend_name, precision=precision)


def test_an_unknown_precision(train):
    with pytest.raises(InputError, match=r"unknown precision 'half'.*'tf32'"):
        train('torch', precision='half')


def test_curves_of_one_recipe_are_told_apart_where_they_lie_on_each_other():
    from matplotlib.figure import Figure

    history = [[7.0, 0.7], [6.0, 0.6]]
    labels = [
        'jax, recipe mxnet',
        'torch, recipe mxnet',
        'torch, recipe pytorch',
    ]
    axes = Figure().subplots()
    display.draw_curves(axes, dict.fromkeys(labels, history), task=0)
    wide, thin, other = axes.lines
    assert wide.get_linewidth() > thin.get_linewidth()
    assert wide.get_alpha() < thin.get_alpha() == 1
    assert wide.get_linestyle() == thin.get_linestyle() == '-'
    assert other.get_linestyle() != '-'
