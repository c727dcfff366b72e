"""The worked example of docs/parity.md, run as it is printed there."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / 'docs' / 'parity.md'


def test_the_worked_example(both_tabs, capsys):
    """Two networks of a reader's own, one of them with a fault."""
    blocks = re.findall(r'```python\n(.*?)```', PAGE.read_text('utf-8'), re.S)
    networks, comparison, failure = blocks[:3]
    names: dict = {}
    for block in (networks, comparison):
        exec(compile(block, str(PAGE), 'exec'), names)
    with pytest.raises(AssertionError) as caught:
        exec(compile(failure, str(PAGE), 'exec'), names)
    printed = re.search(r'```text\nAssertionError: (.*?)```',
                        PAGE.read_text('utf-8'), re.S)[1]  # fmt: skip
    assert shape_of(str(caught.value)) == shape_of(printed)


def shape_of(message):
    """The words of a message without the numbers, which weights decide."""
    return re.sub(r'\[.*?\]|-?\d+\.\d+(e-\d+)?', '#', message).split()
