"""The notebooks are those of their source, and their code runs."""

import random
import re
import shutil
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.text import Text

import d2lbert
from d2lbert.classroom import charts, exercises, figures, inspection
from d2lbert.data import sample
from d2lbert.data.examples import Batch, load_examples
from d2lbert.pytest_plugin import require
from d2lbert.recipes import RECIPES
from d2lbert.runs.config import Config
from d2lbert.trainer import Trainer
from helpers import BIRD, MACHINE

NEEDS = "needs pip install '.[notebooks]'"
nbformat = pytest.importorskip('nbformat', reason=NEEDS)
build = pytest.importorskip('notebooks.build', reason=NEEDS)
EDITIONS = [
    (name, language, framework)
    for name in build.names()
    for language in build.languages()
    for framework in build.FRAMEWORKS
]
each_edition = pytest.mark.parametrize(
    ('name', 'language', 'framework'), EDITIONS
)
each_notebook = pytest.mark.parametrize('name', build.names())


@each_edition
def test_notebooks_are_up_to_date(name, language, framework):
    assert build.stale(name, language, framework) is None


@each_edition
def test_notebooks_hold_their_outputs(name, language, framework):
    notebook = nbformat.read(build.path_of(name, language, framework), 4)
    nbformat.validate(notebook)
    pictures = 0
    for cell in notebook.cells:
        for output in cell.get('outputs', []):
            assert output.output_type != 'error'
            assert output.get('name') != 'stderr'
            if 'image/png' in output.get('data', {}):
                pictures += 1
                assert output.metadata['image/png']['alt']
    assert pictures == len(build.read_prose(name, language).alts)


@each_notebook
def test_every_framework_has_the_same_cells(name):
    assert set(build.OTHER) == set(build.FRAMEWORKS)
    ids = [
        [cell.id for cell in build.read_cells(name, framework)]
        for framework in build.FRAMEWORKS
    ]
    assert all(each == ids[0] for each in ids)


@each_notebook
@pytest.mark.parametrize('language', build.languages())
def test_prose_keeps_what_is_not_to_be_translated(name, language):
    """Formulas, links and solutions are those of the English text."""
    ours = build.read_prose(name, language)
    english = build.read_prose(name, 'en')
    assert list(ours.texts) == list(english.texts)
    assert set(ours.alts) == set(english.alts)
    patterns = (
        r'\]\((.+?)\)',
        r'</?(?:details|summary)>',
        r'^```python\n.+?^```',
    )
    for part, text in ours.texts.items():
        # A language links to the chapter of its own edition
        text = re.sub(r'https://\w\w\.d2l\.ai', 'https://d2l.ai', text)
        for pattern in patterns:
            found, wanted = (
                sorted(re.findall(pattern, one, re.M | re.S))
                for one in (text, english.texts[part])
            )
            assert found == wanted, (part, pattern)


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('<!-- data -->', '<!-- date -->', r"missing \['data'\]"),
        ('<!-- data -->', '<!-- title -->', r"twice: \['title'\]"),
    ],
)
def test_prose_with_other_ids_is_refused(
    tmp_path, monkeypatch, old, new, message
):
    text = (build.SOURCE / 'bert/en.md').read_text('utf-8')
    folder = copied_source(tmp_path, monkeypatch)
    (folder / 'xx.md').write_text(text.replace(old, new), 'utf-8')
    with pytest.raises(build.SourceError, match=message):
        build.build('bert', 'xx', 'torch')
    with pytest.raises(build.SourceError, match=r'write bert/yy\.md'):
        build.build('bert', 'yy', 'torch')


def copied_source(tmp_path, monkeypatch):
    """Make the first notebook the only one, in a folder that is returned."""
    folder = tmp_path / 'bert'
    shutil.copytree(build.SOURCE / 'bert', folder)
    monkeypatch.setattr(build, 'SOURCE', tmp_path)
    return folder


def test_change_of_prose_or_notebook_is_noticed(tmp_path, monkeypatch):
    notebook = build.path_of('bert', 'en', 'torch').read_text('utf-8')
    prose = copied_source(tmp_path, monkeypatch) / 'en.md'
    text = prose.read_text('utf-8')
    (tmp_path / 'bert.ipynb').write_text(notebook, 'utf-8')
    monkeypatch.setattr(build, 'HERE', tmp_path)
    monkeypatch.setattr(build, 'path_of', lambda *_: tmp_path / 'bert.ipynb')
    assert build.stale('bert', 'en', 'torch') is None
    prose.write_text(text + 'More.\n', 'utf-8')
    assert 'older than its source' in build.stale('bert', 'en', 'torch')
    prose.write_text(text, 'utf-8')
    (tmp_path / 'bert.ipynb').write_text(
        notebook.replace('random.seed(0)', 'random.seed(1)'), 'utf-8'
    )
    assert 'edited by hand' in build.stale('bert', 'en', 'torch')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'framework'),
    [
        *(('bert', framework) for framework in build.FRAMEWORKS),
        ('finetuning', 'torch'),
        pytest.param('finetuning', 'mxnet', marks=pytest.mark.long),
        pytest.param('finetuning', 'jax', marks=pytest.mark.long),
    ],
)
def test_notebook_runs_from_scratch(name, framework):
    require(framework)
    notebook = build.build(name, 'en', framework)
    build.run(notebook)
    kept = nbformat.read(build.path_of(name, 'en', framework), 4)
    drawn = [
        cell.id
        for cell in notebook.cells
        if any(
            'image/png' in o.get('data', {}) for o in cell.get('outputs', ())
        )
    ]
    assert drawn == list(build.read_prose(name, 'en').alts)
    assert [cell.id for cell in notebook.cells] == [
        cell.id for cell in kept.cells
    ]


@pytest.mark.parametrize(
    ('cell', 'name', 'check'),
    [
        ('bert/masking-solution', 'replace', exercises.check_replacement),
        (
            'bert/most-probable-solution',
            'most_probable',
            exercises.check_most_probable,
        ),
        ('bert/attention-solution', 'attention', exercises.check_attention),
        (
            'bert/bug-solution',
            'mean_over_words',
            exercises.check_weighted_mean,
        ),
        (
            'finetuning/truncation-solution',
            'truncate',
            exercises.check_truncation,
        ),
        (
            'finetuning/loss-solution',
            'cross_entropy',
            exercises.check_cross_entropy,
        ),
    ],
)
def test_the_checks_accept_the_solutions(capsys, cell, name, check):
    notebook, part = cell.split('/')
    text = build.read_prose(notebook, 'en').texts[part]
    (code,) = re.findall(r'^```python\n(.+?)^```', text, re.M | re.S)
    names = {'np': np, 'random': random}
    exec(code, names)
    check(names[name])
    assert capsys.readouterr().out.startswith('✓')


# ---- what the cells call ---------------------------------------------


def assert_readable(picture):
    """Text has at least 11 points, as many pixels on a page."""
    picture.draw_without_rendering()
    sizes = {
        text.get_text(): text.get_fontsize()
        for text in picture.findobj(Text)
        if text.get_text().strip()
    }
    assert sizes
    assert {text: n for text, n in sizes.items() if n < figures.SIZE} == {}


@pytest.fixture(scope='module')
def examples_and_vocab():
    return load_examples(sample.lines(), 64, random.Random(0))


def test_telling_example_has_a_token_of_every_kind(examples_and_vocab):
    example = inspection.telling_example(*examples_and_vocab)
    kinds = [example.kind(i) for i in range(len(example.words))]
    assert set(kinds) == set(inspection.KINDS)
    assert kinds.count('special') == 3
    for word, token, kind in zip(
        example.words, example.tokens, kinds, strict=True
    ):
        assert (token == '<mask>') == (kind == 'masked')
        assert (token == word) == (kind not in ('masked', 'changed'))


def test_telling_example_masks_a_telling_word(examples_and_vocab):
    masked = {'hook', 'wings'}
    example = inspection.telling_example(*examples_and_vocab, masked)
    assert masked & {
        word
        for place, word in enumerate(example.words)
        if example.kind(place) == 'masked'
    }
    # No example masks this word
    plain = inspection.telling_example(*examples_and_vocab)
    assert inspection.telling_example(*examples_and_vocab, {'x'}) == plain


def small_net(tab, vocab, dropout=0.5):
    net = tab.BERTModel(len(vocab), 16, 32, 2, 2, dropout)
    shapes = tab.BACKEND.parameter_shapes(net)
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    tab.BACKEND.set_parameters(net, arrays)
    return net


FINETUNED = SimpleNamespace(
    steps=[SimpleNamespace(loss=loss) for loss in (4, 2, 1, 3, 2)],
    evaluations=[{'step': 2}, {'step': 5}],
    test_accuracies=[0.5, 0.6],
)


def test_text_in_pictures_is_large_enough(tab, examples_and_vocab):
    examples, vocab = examples_and_vocab
    net, batch = small_net(tab, vocab), Batch(*(X[:9] for X in examples))
    text = 'the crane lowered its <mask> to the deck'
    filling = d2lbert.fill(net, vocab, [text])
    rng = np.random.default_rng(0)
    senses = inspection.SENSES
    vectors = {
        topic: rng.normal(size=(5, 9))
        for topics in senses.values()
        for topic in topics
    }
    evaluation = {
        'step': 1,
        'mlm_loss': 7.0,
        'nsp_loss': 0.7,
        'frequencies': {'mlm_loss': 6.0, 'nsp_loss': 0.7},
    }
    runs = [
        SimpleNamespace(
            history=[[7.0, 0.7], [6.0, 0.8]],
            config=SimpleNamespace(backend=tab.BACKEND.name, recipe=recipe),
            vocab=vocab,
            evaluations=[evaluation],
        )
        for recipe in RECIPES
    ]
    for picture in (
        figures.draw_pretraining(),
        figures.draw_example(inspection.telling_example(examples, vocab)),
        figures.draw_model(net, batch),
        charts.draw_curves(runs, 6.0),
        charts.draw_held_out(runs[0]),
        charts.draw_fillings({'steps = 0': filling}),
        charts.draw_plane({'steps = 0': vectors}, senses),
        charts.draw_attention(net, vocab, text),
        figures.draw_pair(['<cls>', 'crane', '<sep>', '<pad>'], [0] * 4, 3),
        figures.draw_transfer(net),
        charts.draw_finetunings({'scratch=True': [FINETUNED]}),
        charts.draw_confusion(np.eye(3, dtype=int)),
    ):
        assert_readable(picture)


@pytest.mark.slow
def test_attention_and_words(tab, examples_and_vocab):
    _, vocab = examples_and_vocab
    net = small_net(tab, vocab)
    weights = inspection.attention_weights(net, vocab, 'a crane is flying')
    assert weights.shape == (2, 2, 6, 6)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    vectors = inspection.word_vectors(
        net, vocab, ['a crane is flying', 'The crane came'], 'crane'
    )
    assert vectors.shape == (2, 16)
    np.testing.assert_allclose((vectors**2).sum(axis=1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="no 'crane' in 'he just left'"):
        inspection.word_vectors(net, vocab, ['he just left'], 'crane')


def test_slot_losses_are_those_of_the_loss(tab, examples_and_vocab):
    examples, vocab = examples_and_vocab
    batch = Batch(*(array[:70] for array in examples))
    net = small_net(tab, vocab, dropout=0)
    losses = inspection.slot_losses(net, batch)
    assert losses.shape == batch.mlm_labels.shape
    devices = tab.BACKEND.devices('cpu')
    trainer = Trainer(net, RECIPES['pytorch'], lr=1e-30, devices=devices)
    with closing(trainer):
        (step,) = trainer.train([batch], 1)
    assert losses.mean() == pytest.approx(step.mlm_loss, rel=1e-5)


def test_the_senses_are_the_topics_with_a_crane():
    found = inspection.sentences_by_topic('crane')
    assert set(found) == BIRD | MACHINE
    assert [set(topics) for topics in inspection.SENSES.values()] == [
        BIRD,
        MACHINE,
    ]
    for sentences in found.values():
        assert sentences == sorted(set(sentences))
        assert all(one.split().count('crane') == 1 for one in sentences)


def test_mean_cosines_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    X, Y = (rng.normal(size=(n, 4)) for n in (3, 5))
    X, Y = (Z / np.linalg.norm(Z, axis=1, keepdims=True) for Z in (X, Y))
    found = inspection.mean_cosines([X, Y])
    upper = np.triu_indices(3, 1)
    np.testing.assert_allclose(found[0, 0], (X @ X.T)[upper].mean())
    np.testing.assert_allclose(found[0, 1], (X @ Y.T).mean())
    np.testing.assert_allclose(found, found.T)


def test_principal_components_keep_a_plane_as_it_is():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(20, 2)) * [3, 1]
    plane -= plane.mean(axis=0)
    basis, _ = np.linalg.qr(rng.normal(size=(7, 2)))
    found, shares = charts.principal_components(plane @ basis.T + 5)
    np.testing.assert_allclose(found @ found.T, plane @ plane.T, atol=1e-10)
    assert shares.sum() == pytest.approx(1)
    assert (found.max(axis=0) >= -found.min(axis=0)).all()


def test_epoch_losses_are_the_means_of_its_steps():
    assert charts.epoch_losses(FINETUNED) == [3, 2]


def test_number_of_parameters_is_the_networks(tab):
    sizes = {
        'num_hiddens': 12,
        'ffn_num_hiddens': 20,
        'num_heads': 3,
        'num_blks': 4,
    }
    net = tab.BERTModel(50, dropout=0.1, **sizes)
    shapes = tab.BACKEND.parameter_shapes(net).values()
    assert inspection.count_parameters(Config(**sizes), 50) == sum(
        int(np.prod(shape)) for shape in shapes
    )


def test_memory_grows_with_the_micro_batch_alone():
    small, large = (
        inspection.estimate_memory(1000, micro_batch=rows, max_len=512)
        for rows in (1, 8)
    )
    assert large.activations == 8 * small.activations
    assert large[:3] == small[:3]
    assert small.total == sum(small)
