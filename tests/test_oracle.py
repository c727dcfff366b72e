"""The textbook's own numbers, from files that `oracle.textbook` has made.

They need neither d2l nor anything else; `make oracle` compares more.
"""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from d2lbert.pytest_plugin import require
from helpers import BOOK_BACKENDS
from oracle import cases, ours, results

GOLDEN = Path(__file__).parent / 'golden'
TOLERANCE = 1e-5
SMALL = ('odd', 'flat')
#: For trainings: the other network is in `make test-all`.
ONE_SMALL = ['odd', pytest.param('flat', marks=pytest.mark.slow)]
TRAININGS = [
    pytest.param(framework, training, marks=getattr(pytest.mark, framework))
    for framework in cases.FRAMEWORKS
    for training in cases.TRAININGS[framework]
]


@pytest.fixture(params=BOOK_BACKENDS)
def backend_name(request):
    """The frameworks in which the book has the chapter."""
    require(request.param)
    return request.param


@pytest.fixture(scope='module')
def fingerprints():
    return json.loads((GOLDEN / 'examples.json').read_text())


@pytest.fixture
def golden(backend_name):
    """The textbook's outputs, gradients and losses."""
    return read(backend_name)


def read(framework):
    with np.load(GOLDEN / f'{framework}.npz') as arrays:
        return dict(arrays)


def assert_close(found, expected):
    assert found
    for name, array in found.items():
        np.testing.assert_allclose(
            array, expected[name], rtol=0, atol=TOLERANCE, err_msg=name
        )


# ---- examples --------------------------------------------------------


@pytest.mark.parametrize('name', cases.GRAINS)
def test_examples(tab, fingerprints, name, tmp_path):
    side, _ = ours.modules(tab.BACKEND.name)
    folder = cases.write_corpus(tmp_path, cases.corpus(name))
    for max_len, seed in cases.LENGTHS_AND_SEEDS:
        case = f'{name}, length {max_len}, seed {seed}'
        found = results.examples(
            side, ours.loader(tab), folder, max_len, seed
        )
        assert found == fingerprints['examples'][case], case


def test_types(tab, fingerprints, tmp_path):
    framework = tab.BACKEND.name
    side, _ = ours.modules(framework)
    found = results.types(side, ours.loader(tab), tmp_path)
    for (name, _), here, there in zip(
        cases.ARRAYS, found, fingerprints['types'][framework], strict=True
    ):
        if cases.FLOAT_THERE.get(framework) == name:
            here = here.replace('int', 'float')
        assert here == there, name


def test_an_epoch_has_each_example_once(tab, tmp_path):
    side, _ = ours.modules(tab.BACKEND.name)
    folder = cases.write_corpus(tmp_path, cases.corpus('plain'))
    random.seed(0)
    train_iter, _ = tab.load_data_wiki(32, 64, folder)

    def rows(batches):
        return Counter(
            b''.join(array.tobytes() for array in row)
            for batch in batches
            for row in zip(*map(side.to_numpy, batch), strict=True)
        )

    examples = results.stacked(side, train_iter.dataset)
    alone = Counter(
        b''.join(array.tobytes() for array in row)
        for row in zip(*examples, strict=True)
    )
    assert rows(train_iter) == rows(train_iter) == alone


# ---- networks --------------------------------------------------------


@pytest.mark.parametrize('name', SMALL)
def test_names_and_shapes(tab, name):
    framework = tab.BACKEND.name
    side, _ = ours.modules(framework)
    net = side.new_net(tab, cases.NETWORKS[name])
    assert net.backend.parameter_shapes(net) == {
        getattr(parameter, framework): parameter.shape
        for parameter in cases.parameters(cases.NETWORKS[name])
    }


@pytest.mark.parametrize('name', SMALL)
def test_outputs_with_the_textbooks_file(tab, golden, name):
    framework = tab.BACKEND.name
    side, _ = ours.modules(framework)
    net = ours.network(framework, name, GOLDEN)
    assert_close(results.outputs(side, net, name), golden)


@pytest.mark.parametrize('name', SMALL)
def test_our_file_is_read_by_the_framework(tab, golden, name, tmp_path):
    framework = tab.BACKEND.name
    side, _ = ours.modules(framework)
    path = tmp_path / f'ours{side.SUFFIX}'
    side.save(ours.network(framework, name, GOLDEN), path)
    net = results.network(side, tab, name, path)
    assert_close(results.outputs(side, net, name), golden)


@pytest.mark.parametrize('name', SMALL)
def test_gradients(tab, golden, name):
    framework = tab.BACKEND.name
    side, _ = ours.modules(framework)
    net = ours.network(framework, name, GOLDEN)
    assert_close(results.gradients(side, tab, net, name), golden)


@pytest.mark.slow
@pytest.mark.parametrize('name', ONE_SMALL)
@pytest.mark.parametrize(('backend_name', 'training'), TRAININGS)
def test_losses_of_our_trainer(backend_name, training, name):
    require(backend_name)
    side, _ = ours.modules(backend_name)
    net = ours.network(backend_name, name, GOLDEN)
    found = ours.trainer_losses(side, net, cases.batches(name), training)
    key = f'{name}/steps/{training.name}'
    assert_close({key: found}, read(backend_name))


@pytest.mark.slow
@pytest.mark.parametrize('name', ONE_SMALL)
@pytest.mark.parametrize(('backend_name', 'training'), TRAININGS)
def test_losses_of_the_chapters_loop(backend_name, training, name):
    require(backend_name)
    side, tab = ours.modules(backend_name)
    net = ours.network(backend_name, name, GOLDEN)
    found = results.chapter_losses(
        side, tab, net, name, cases.batches(name), training
    )
    key = f'{name}/steps/{training.name}'
    assert_close({key: found}, read(backend_name))


@pytest.mark.filterwarnings('ignore:.*averages the masked')
@pytest.mark.parametrize(('backend_name', 'training'), TRAININGS)
def test_train_bert_prints_the_textbooks_losses(
    backend_name, training, capsys, tmp_path, monkeypatch
):
    require(backend_name)
    monkeypatch.chdir(tmp_path)
    side, tab = ours.modules(backend_name)
    net = ours.network(backend_name, 'odd', GOLDEN)
    batches = cases.batches('odd')
    tab.train_bert(
        [side.native(batch) for batch in batches],
        net,
        side.loss(training.name),
        cases.NETWORKS['odd'].vocab_size,
        net.backend.devices(training.devices),
        len(batches),
    )
    expected = read(backend_name)[f'odd/steps/{training.name}']
    mlm, nsp = expected.mean(axis=0)
    _rate, line, _speed = capsys.readouterr().out.splitlines()
    assert line == f'MLM loss {mlm:.3f}, NSP loss {nsp:.3f}'
