"""The embedded corpus: its size, its language, and its two cranes."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from itertools import pairwise

import pytest

from d2lbert.data import sample
from helpers import BIRD, MACHINE, sample_paragraphs


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


RESERVED = 5  # <unk> <pad> <mask> <cls> <sep>
SHA256 = '369a48f5cb08906dbde79368ab16e736773c6e08cda1c358d3eb3eb155531ced'

BIRD_WORDS = words("""
    bird birds nest nests nesting egg eggs wing wings feather feathers beak
    flock fly flies flying flew fox reeds chick chicks hatch marsh marshes
    lake pond bay fen meadow meadows wetlands water heron stork eagle mate
    danced dance dancing dances neck autumn winter south spain france africa
    map parents hunter storm feed grass mother leg legs frog insects worms
    wild call calls called whistle
""")
MACHINE_WORDS = words("""
    machine hook cable load loads lift lifts lifted lifting driver cab
    engine steel quay dockers docker winch lever levers truck trucks tons
    site builders foreman helmet ladder brakes brake wheels wagons wooden
    workers scaffold motor hold wall bolt ship unload unloads unloading gate
    container containers rails mechanic beam crate pipe bricks concrete
    drive arm
""")


@pytest.fixture(scope='module')
def lines() -> list[str]:
    return sample.lines()


@pytest.fixture(scope='module')
def texts(lines) -> list[list[list[str]]]:
    """Paragraphs as the chapter reads them: sentences of words."""
    split = [line.strip().lower().split(' . ') for line in lines]
    return [[sentence.split() for sentence in text] for text in split]


@pytest.fixture(scope='module')
def counts(texts) -> Counter[str]:
    return Counter(w for text in texts for s in text for w in s)


def test_the_text_is_pinned(lines):
    text = ''.join(f'{line}\n' for line in lines)
    assert hashlib.sha256(text.encode()).hexdigest() == SHA256


def test_a_topic_stands_above_every_paragraph(lines):
    topics = sample.read_text().splitlines()[::2]
    assert len(topics) == len(lines) > 1000
    assert all(re.fullmatch('= .+ =', topic) for topic in topics)


def test_it_is_ascii_and_no_larger_than_a_megabyte(lines):
    text = '\n'.join(lines)
    assert text.isascii()
    assert 300_000 <= len(text) <= 1_000_000


def test_every_line_is_a_paragraph_of_at_least_two_sentences(lines):
    for line in lines:
        assert line.endswith(' .')
        sentences = line.removesuffix(' .').split(' . ')
        assert len(sentences) >= 2
        assert all(sentence.strip() for sentence in sentences)


def test_words_stand_apart_by_single_spaces(lines):
    for line in lines:
        assert line == ' '.join(line.split())
        assert not re.search(r'\w[,;.]', line), line
        assert not re.search(r'[{}|\[\]=]', line), line


def test_no_word_is_doubled(lines):
    for line in lines:
        assert not re.search(r'\b(\w+) \1\b', line.lower()), line


def test_a_stands_before_consonants_and_an_before_vowels(lines):
    sounds_otherwise = re.compile(r'one|once|us[eu]|uni|eu|hour|honest')
    for line in lines:
        for article, word in re.findall(r'\b(an?) (\w+)', line.lower()):
            if word == 'and':  # a list of letters, not an article
                continue
            vowel = word[0] in 'aeiou'
            if sounds_otherwise.match(word):
                vowel = not vowel
            assert (article == 'an') == vowel, f'{article} {word}: {line}'


def test_every_sentence_begins_with_a_capital(lines):
    for line in lines:
        for sentence in line.split(' . '):
            assert sentence[0].isupper(), sentence


def test_it_gives_enough_examples_at_length_64(texts):
    lengths = [
        len(first) + len(second) + 3
        for text in texts
        for first, second in pairwise(text)
    ]
    fitting = [length for length in lengths if length <= 64]
    assert len(fitting) >= 3000
    assert len(fitting) == len(lengths)
    assert 25 <= sum(fitting) / len(fitting) <= 35


def test_its_vocabulary_is_rich_enough_and_nearly_all_known(counts):
    known = {word: n for word, n in counts.items() if n >= 5}
    assert len(known) + RESERVED > 800
    unknown = sum(counts.values()) - sum(known.values())
    assert unknown / sum(counts.values()) < 0.02


@pytest.mark.parametrize(
    'word', sorted(words('a crane is flying driver came he just left bird'))
)
def test_the_words_of_the_class_are_known(counts, word):
    assert counts[word] >= 5


@pytest.mark.parametrize(
    'topics, cues, others',
    [(BIRD, BIRD_WORDS, MACHINE_WORDS), (MACHINE, MACHINE_WORDS, BIRD_WORDS)],
    ids=['the bird', 'the machine'],
)
def test_both_cranes_are_frequent_and_their_sentences_decisive(
    topics, cues, others
):
    told = sample_paragraphs()
    sentences = [
        (name, set(sentence.lower().split()))
        for name, text in told
        for sentence in text
    ]
    cranes = [
        sentence
        for name, sentence in sentences
        if name in topics and 'crane' in sentence
    ]
    assert len(cranes) / len(sentences) >= 0.05
    for sentence in cranes:
        assert len(sentence & cues) > len(sentence & others), sentence


def test_the_two_cranes_share_no_paragraph():
    for name, text in sample_paragraphs():
        if name not in BIRD | MACHINE:
            assert 'crane' not in ' '.join(text).lower(), name


def test_no_sentence_tells_what_a_crane_is(texts):
    """The network finds out from the words beside it."""
    about_words = words('word words mean means meaning meanings kind kinds')
    for sentence in (set(s) for text in texts for s in text):
        if sentence & {'crane', 'cranes'}:
            assert not sentence & about_words, sentence
            assert not sentence & {'bird', 'birds'}, sentence
            assert not {'is', 'machine'} <= sentence, sentence


# ---- the text to evaluate on -----------------------------------------


def test_the_held_out_text_has_the_same_form():
    lines = sample.held_out_lines()
    test_every_line_is_a_paragraph_of_at_least_two_sentences(lines)
    test_words_stand_apart_by_single_spaces(lines)
    test_no_word_is_doubled(lines)
    test_a_stands_before_consonants_and_an_before_vowels(lines)
    test_every_sentence_begins_with_a_capital(lines)
    topics = sample.read_text('held_out.txt').splitlines()[::2]
    assert set(topics) <= set(sample.read_text().splitlines()[::2])


def windows(items, size):
    return zip(*(items[i:] for i in range(size)), strict=False)


def test_no_part_of_a_held_out_sentence_is_in_the_text(lines):
    def parts(lines):
        return {
            tuple(run)
            for line in lines
            for sentence in line.lower().removesuffix(' .').split(' . ')
            for run in windows(sentence.split(), 6)
        }

    assert parts(sample.held_out_lines())
    assert not parts(sample.held_out_lines()) & parts(lines)


def test_the_held_out_words_are_nearly_all_known(counts):
    found = [
        word
        for line in sample.held_out_lines()
        for word in line.lower().split()
    ]
    assert sum(counts[word] < 5 for word in found) / len(found) < 0.06
