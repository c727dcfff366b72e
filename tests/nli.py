"""Made-up files for natural language inference, in the book's formats."""

import hashlib
import io
import json
import random
import zipfile

from d2lbert.data import snli
from d2lbert.data.vocab import RESERVED_TOKENS, UNKNOWN
from d2lbert.tools.convert import to_mxnet
from d2lbert.weights import initial_weights, neutral_shapes

WORDS = (
    'a', 'man', 'woman', 'dog', 'horse', 'child', 'is', 'the', 'on', 'in',
    'outside', 'sleeping', 'running', 'eating', 'red', 'big', 'park', 'bed',
    'road', 'two', 'people', 'sit', 'walk', 'near', '.', ',', 'not',
)  # fmt: skip
#: `<pad>` is at neither 0 nor 1: nothing may count on that.
TOKENS = (*WORDS[:4], *RESERVED_TOKENS, *WORDS[4:], UNKNOWN)
#: The arguments of `load_pretrained_model` for `bert.small`.
SMALL = {
    'num_hiddens': 256, 'ffn_num_hiddens': 512, 'num_heads': 4,
    'num_blks': 2, 'max_len': 512,
}  # fmt: skip


def tree(words):
    """A binary tree in parentheses, as SNLI has them."""
    *rest, last = words
    return f'( {tree(rest)} {last} )' if rest else last


def snli_text(num_pairs, seed):
    """A file of SNLI: a header, pairs, and some without a label."""
    rng = random.Random(seed)
    lines = ['\t'.join(f'field{i}' for i in range(14))]
    for number in range(num_pairs):
        pair = [rng.choices(WORDS, k=rng.randint(1, 9)) for _ in range(2)]
        pair[0][0] = pair[0][0].capitalize()
        label = rng.choice([*snli.LABELS, '-'])
        trees = [tree(words) for words in pair]
        plain = [' '.join(words) for words in pair]
        fields = [label, *trees, *trees, *plain, str(number), *(6 * [''])]
        lines.append('\t'.join(fields[:14]))
    return '\n'.join(lines) + '\n'


def snli_zip(num_pairs=100):
    """The bytes of an archive as SNLI's, with the names that it has."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for seed, name in enumerate(snli.FILES.values()):
            text = snli_text(num_pairs, seed)
            archive.writestr(f'{snli.FOLDER}/{name}', text)
            archive.writestr(f'__MACOSX/{snli.FOLDER}/._{name}', b'\0')
        archive.writestr(f'{snli.FOLDER}/Icon\r', b'')
        archive.writestr(f'{snli.FOLDER}/.DS_Store', b'\0')
    return file.getvalue()


def small_weights(tab, seed=0, **sizes):
    """The weights of a `bert.small` of 32 words, by neutral names."""
    net = tab.BERTModel(len(TOKENS), **SMALL | sizes)
    return initial_weights(neutral_shapes(net), 'xavier', seed)


def params(weights, tab_name):
    """The bytes of `pretrained.params` as a tab of the book has it."""
    if tab_name == 'mxnet':
        return to_mxnet(weights)
    import torch

    file = io.BytesIO()
    state = torch.nn.Module().state_dict()  # with its metadata
    state.update({name: torch.tensor(W) for name, W in weights.items()})
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def small_zip(name, data, tokens=TOKENS):
    """The bytes of an archive with these `pretrained.params`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr(f'{name}/vocab.json', json.dumps(tokens))
        archive.writestr(f'{name}/pretrained.params', data)
    return file.getvalue()


def sha1(data):
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
