"""The linter finds what the code must not do; pickles are refused."""

import gzip
import io
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import d2lbert
from backends import mxnet_import
from d2lbert.data.files import parse_manifest
from d2lbert.errors import D2LBertError
from d2lbert.runs.checkpoint import Checkpoints
from d2lbert.runs.folder import to_manifest
from d2lbert.tools.convert import convert
from helpers import ROOT
from kill_saves import forge, small

# ---- the linter ------------------------------------------------------


def findings(code, where='d2lbert/planted.py'):
    """Return the rules of security that ruff finds broken."""
    pytest.importorskip('ruff')
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'ruff', 'check', '--no-cache'),
            *('--output-format=concise', f'--stdin-filename={where}', '-'),
        ],
        input=code,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode in {0, 1}, done.stderr
    return re.findall(r': (S\d+|TID251) ', done.stdout)


BAD = (
    'import pickle',
    'from pickle import loads',
    'import joblib.numpy_pickle',
    'def f():\n    import dill',
    'import torch as t\nt.load(path, weights_only=True)',
    'import torch\nread = torch.load',
    'import torch\ntorch.hub.load_state_dict_from_url(url)',
    'import numpy as np\nnp.load(path, allow_pickle=True)',
    'from mxnet import nd\nnd.load(path)',
    'from mxnet import gluon\ngluon.SymbolBlock.imports(path)',
    'eval(text)',
    'import builtins\nbuiltins.exec(text)',
    'from os import system as s\ns(text)',
    'import subprocess\nsubprocess.run(text, shell=True)',
    'import subprocess\nsubprocess.getoutput(text)',
    'import yaml\nyaml.load(text)',
    'import tempfile\ntempfile.mktemp()',
    'import requests\nrequests.get(url, verify=False, timeout=9)',
    'from urllib.request import urlopen',
    'import tarfile\narchive = tarfile.open(path)\narchive.extractall()',
    'import shutil\nshutil.unpack_archive(path)',
    'from importlib.util import spec_from_file_location',
)
GOOD = """
import ast
import json
import re
import subprocess
import sys

from d2lbert import torch as d2l

re.compile(text)
net.eval()
json.loads(text), ast.literal_eval(text)
archive.extractfile(member)
subprocess.run([sys.executable, path], check=True)
"""


@pytest.mark.parametrize('code', BAD)
def test_the_linter_finds(code):
    assert findings(code)


def test_the_linter_lets_pass():
    assert findings(GOOD) == []


def test_every_folder_of_the_code_is_linted():
    for folder in ('d2lbert/runs', 'backends', 'benchmarks'):
        assert findings(BAD[0], f'{folder}/planted.py') == ['TID251']


def test_exceptions_from_the_rules_are_few():
    """Downloads, `extract`, the command again, archives without objects."""
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in ('d2lbert', 'backends', 'benchmarks')
        for path in sorted((ROOT / folder).rglob('*.py'))
        for line in path.read_text('utf-8').splitlines()
        if re.search(r'noqa(:.*\b(S\d+|TID251)|\s*$)', line)
    ]
    assert found == [
        'd2lbert/book/hub.py',
        'd2lbert/cli/launching.py',
        'd2lbert/data/corpus.py',
        'd2lbert/data/corpus.py',
        'd2lbert/data/corpus.py',
        'd2lbert/data/weight_files.py',
        'benchmarks/workload.py',
    ]


def test_the_hook_runs_one_file_and_no_text(tmp_path):
    """A file of d2lbert, whatever its path is."""
    line = mxnet_import.enable(tmp_path).read_text('ascii')
    assert findings(line.replace(str(ROOT), '')) == []  # a path may break one
    assert line.count('(mend)') == 2 and line.count('run_path') == 1
    assert f'mend={mxnet_import.__file__!a}:' in line


# ---- pickles ---------------------------------------------------------


class Trap:
    """When it is unpickled it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def npy(trap):
    file = io.BytesIO()
    np.save(file, np.array([trap], object), allow_pickle=True)
    return file.getvalue()


def npz(trap):
    file = io.BytesIO()
    np.savez(file, **{'weights.a': np.array([trap], object)})
    return file.getvalue()


def zipped(trap, name='wiki.train.tokens'):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr(name, pickle.dumps(trap))
    return file.getvalue()


FORMS = {
    'text': lambda trap: pickle.dumps({'a': trap}, 0),
    'binary': lambda trap: pickle.dumps({'a': trap}),
    'npy': npy,
    'npz': npz,
    'gzip': lambda trap: gzip.compress(pickle.dumps(trap)),
    'zip': zipped,
    # What torch.save writes
    'torch': lambda trap: zipped(trap, 'archive/data.pkl'),
}


@pytest.fixture(params=FORMS)
def trap(request, tmp_path):
    """A pickle; fails the test that has opened it."""
    sprung = tmp_path / 'sprung'
    yield FORMS[request.param](Trap(sprung))
    assert not sprung.exists()


def test_the_trap_works(tmp_path):
    path = tmp_path / 'sprung'
    pickle.loads(pickle.dumps(Trap(path)))
    assert path.exists()
    path.unlink()
    np.load(io.BytesIO(npy(Trap(path))), allow_pickle=True)
    assert path.exists()


def test_a_pickle_is_no_corpus(trap, tmp_path, one_backend):
    for name in ('x', 'x.zip', 'x.tgz'):
        (tmp_path / name).write_bytes(trap)
        with pytest.raises(D2LBertError):
            d2lbert.pretrain(
                backend=one_backend,
                corpus=tmp_path / name,
                out=tmp_path / 'run',
                devices='cpu',
            )
    assert not (tmp_path / 'run').exists()


def test_a_pickle_is_no_weights(trap, tmp_path):
    for name in ('net.pt', 'net.params', 'net.safetensors'):
        (tmp_path / name).write_bytes(trap)
        with pytest.raises(D2LBertError):
            convert(tmp_path / name, 'safetensors', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_pickle_is_no_checkpoint(trap, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(small(3))
    checkpoints.path(3).write_bytes(trap)
    with pytest.raises(D2LBertError):
        checkpoints.load()
    # With a checksum that is right
    forge(checkpoints.path(3), trap.decode('latin-1'))
    with pytest.raises(D2LBertError):
        checkpoints.load()


def seal_run(folder, files):
    """Write a manifest whose checksums are right."""
    about = parse_manifest(folder, files.pop('run.json'))
    del about['sha256'], about['files']
    (folder / 'run.json').write_bytes(to_manifest(about, files))


@pytest.mark.parametrize('sealed', [False, True])
def test_a_pickle_is_no_run(trap, saved, one_backend, tmp_path, sealed):
    """Not even with checksums that are right."""
    files = {
        path.name: path.read_bytes()
        for path in saved(one_backend).iterdir()
        if path.is_file()
    }
    folder = tmp_path / 'run'
    folder.mkdir()
    for name in ('weights.safetensors', 'metrics.jsonl', 'run.json'):
        for file, data in files.items():
            (folder / file).write_bytes(data)
        (folder / name).write_bytes(trap)
        if sealed and name != 'run.json':
            seal_run(folder, {**files, name: trap})
        with pytest.raises(D2LBertError):
            d2lbert.load_run(folder)


# ---- the audit of dependencies ---------------------------------------


@pytest.mark.parametrize(
    ('answer', 'status', 'said'),
    [
        (
            'print(json({"name": "a", "version": "1", "vulns": []}))',
            0,
            '1 pa',
        ),
        (
            'print(json({"name": "a", "version": "1", "vulns": [{"id": '
            '"CVE-1", "fix_versions": ["2"]}]}))',
            1,
            'a 1: CVE-1, mended in 2',
        ),
        ('print(json({"name": "a", "skip_reason": "x"}))', 0, 'NOT AUDITED'),
        ('sys.exit("ConnectionError: refused")', 0, 'NOT AUDITED'),
        ('sys.exit("invalid requirements")', 1, 'invalid requirements'),
    ],
)
def test_the_audit_fails_for_what_it_finds(tmp_path, answer, status, said):
    """With something in the place of pip-audit that answers so."""
    (tmp_path / 'pip_audit.py').write_text(
        'import json as codec, sys\n'
        'def json(package):\n'
        '    return codec.dumps({"dependencies": [package]})\n' + answer
    )
    done = subprocess.run(
        [sys.executable, ROOT / '.ci' / 'audit.py'],
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': str(tmp_path)},
    )
    assert done.returncode == status
    assert said in done.stdout


# ---- docs/reliability.md ---------------------------------------------


def test_every_fault_has_a_test_that_exists():
    page = (ROOT / 'docs' / 'reliability.md').read_text('utf-8')
    faults = set()
    for line in page.splitlines():
        number = re.match(r'\| (\d+) ', line)
        if number:
            faults.add(int(number[1]))
            *_, tests, _ = line.split('|')
            assert_tests_exist(tests)
    assert faults == set(range(1, 89))


def assert_tests_exist(text):
    """`text`: `file::name`, then more names of the same file as `::name`."""
    found = re.findall(r'`(\w+\.py)?::(\w+)`', text)
    assert found and text.count('::') == len(found)
    file = ''
    for given, name in found:
        file = given or file
        code = (ROOT / 'tests' / file).read_text('utf-8')
        assert f'\ndef {name}(' in code, f'{file} has no {name}'
