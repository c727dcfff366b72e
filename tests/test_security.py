"""What the code never does, seen in its syntax trees; pickles are refused."""

import ast
import builtins
import gzip
import io
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import d2lbert
from backends import mxnet_import
from d2lbert.data.files import describe_file, read_manifest, to_manifest
from d2lbert.errors import D2LBertError
from d2lbert.runs.checkpoint import Checkpoints
from d2lbert.tools.convert import convert
from helpers import seal
from kill_saves import small

ROOT = Path(d2lbert.__file__).parents[1]
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ('d2lbert', 'backends', 'benchmarks')
    for path in (ROOT / folder).rglob('*.py')
)

# ---- the rules -------------------------------------------------------

#: Their files can run anything when they are opened.
UNPICKLERS = {
    'pickle', '_pickle', 'cPickle', 'cloudpickle', 'dill', 'joblib',
    'marshal', 'shelve', 'pandas', 'torch.load', 'torch.jit.load',
    'torch.package', 'torch.hub', 'mxnet.nd.load', 'mxnet.npx.load',
    'mxnet.gluon.SymbolBlock.imports', 'numpy.lib.format.read_array',
}  # fmt: skip
#: Text becomes code, or a shell's command.
RUNNERS = {
    'eval', 'exec', 'compile', 'builtins.eval', 'builtins.exec',
    'builtins.compile', 'code', 'runpy', 'os.system', 'os.popen', 'pty',
    'subprocess.getoutput', 'subprocess.getstatusoutput',
    'asyncio.create_subprocess_shell', 'yaml.load', 'yaml.unsafe_load',
}  # fmt: skip
#: Files whose name somebody else can take, or that go where they like.
FILES = {'tempfile.mktemp', 'shutil.unpack_archive'}
EXTRACTING = {'extract', 'extractall'}
#: Only the module that verifies what it fetches may fetch.
NETWORK = {
    'requests', 'urllib.request', 'urllib3', 'http.client', 'ftplib',
    'socket', 'pooch', 'httpx', 'aiohttp', 'torch.hub',
    'mxnet.gluon.utils.download', 'mxnet.test_utils.download',
}  # fmt: skip
MAY_FETCH = 'd2lbert/data/corpus.py'
IMPORTERS = {'importlib.import_module', '__import__', 'builtins.__import__'}
#: The hook runs this project's own `mxnet_import.py`, by its path.
MAY_LOAD_A_FILE = 'the hook'
SHORT = {'mx': 'mxnet', 'np': 'numpy'}


def findings(code: str, where: str = '') -> list[str]:
    """Return what a piece of code does that it must not."""
    tree = ast.parse(code)
    names = SHORT | dict(imported(tree))
    return [
        f'{where}:{getattr(node, "lineno", 0)}: {finding}'
        for node in ast.walk(tree)
        for finding in rules_of(node, names, where)
    ]


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield each name that an import gives, and what it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition('.')[0]
                yield alias.asname or top, alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield (
                    alias.asname or alias.name,
                    f'{node.module}.{alias.name}',
                )


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """Return what a name or an attribute stands for: `'os.system'`."""
    if isinstance(node, ast.Name):
        builtin = node.id in vars(builtins)
        # What is neither is a variable, whatever its name
        return names.get(node.id, node.id if builtin else '?')
    if isinstance(node, ast.Attribute):
        return f'{dotted(node.value, names)}.{node.attr}'
    return ''


def rules_of(
    node: ast.AST, names: dict[str, str], where: str
) -> Iterator[str]:
    """Yield what is wrong with one node."""
    forbidden = UNPICKLERS | RUNNERS | FILES
    if where != MAY_FETCH:
        forbidden = forbidden | NETWORK
    for name in mentioned(node, names):
        yield from (
            f'{bad} is used'
            for bad in forbidden
            if name == bad or name.startswith(f'{bad}.')
        )
    if isinstance(node, ast.Call):
        yield from rules_of_calls(node, dotted(node.func, names), where)
    if isinstance(node, ast.Constant) and 'http://' in str(node.value):
        yield 'an address without encryption'


def mentioned(node: ast.AST, names: dict[str, str]) -> Iterator[str]:
    """Yield the modules, functions and attributes that a node names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f'{node.module}.{alias.name}' for alias in node.names)
    elif isinstance(node, (ast.Name, ast.Attribute)):
        yield dotted(node, names)
    elif isinstance(node, ast.Call) and node.args:
        target = node.args[0]
        if dotted(node.func, names) in IMPORTERS and isinstance(
            target, ast.Constant
        ):
            yield str(target.value)


def rules_of_calls(node: ast.Call, name: str, where: str) -> Iterator[str]:
    """Yield what is wrong with a call of what `name` says."""
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    method = name.rpartition('.')[2]
    if name == 'numpy.load' and not says(given.get('allow_pickle'), False):
        yield 'numpy.load without allow_pickle=False'
    if says(given.get('allow_pickle'), True):
        yield 'allow_pickle=True'
    if 'shell' in given and not says(given['shell'], False):
        yield 'a shell'
    if 'verify' in given and not says(given['verify'], True):
        yield 'an unverified connection'
    if method in EXTRACTING:
        yield 'an archive unpacked to a disk'
    if method == 'exec_module' and where != MAY_LOAD_A_FILE:
        yield 'a file run by its path'
    # A backend's own takes arrays
    if method.startswith('load_param') and 'backend' not in ast.unparse(
        node.func
    ):
        yield 'a file opened by Gluon'


def says(node: ast.AST | None, value: object) -> bool:
    """Say whether an argument is written out to be `value`."""
    return isinstance(node, ast.Constant) and node.value is value


# ---- the code --------------------------------------------------------


@pytest.mark.parametrize('path', SOURCES)
def test_the_code_does_nothing_of_the_kind(path):
    assert findings((ROOT / path).read_text('utf-8'), path) == []


def test_all_the_code_is_looked_at():
    assert len(SOURCES) > 40
    assert {'d2lbert/runs/run.py', 'backends/mxnet_import.py'} <= set(SOURCES)


def test_nor_does_the_hook_that_doctor_writes(tmp_path):
    pth = mxnet_import.enable(tmp_path)
    assert findings(pth.read_text('utf-8'), 'the pth') == []
    code = pth.with_suffix('.py').read_text('utf-8')
    assert findings(code, MAY_LOAD_A_FILE) == []
    assert findings(code, 'elsewhere') != []


BAD = {
    'import': 'import pickle',
    'import as': 'import pickle as p',
    'import from': 'from pickle import loads',
    'import within': 'def f():\n    import dill',
    'import by name': "import importlib\nimportlib.import_module('marshal')",
    'import by dunder': "__import__('shelve')",
    'import of a part': 'import os, joblib.numpy_pickle',
    'torch': 'import torch\ntorch.load(path)',
    'torch renamed': 'import torch as t\nt.load(path, weights_only=True)',
    'torch from': 'from torch import load as read\nread(path)',
    'torch handed on': 'import torch\nread = torch.load',
    'numpy': 'import numpy\nnumpy.load(path)',
    'numpy renamed': 'from numpy import load\nload(path)',
    'numpy pickles': 'np.load(path, allow_pickle=True)',
    'numpy perhaps': 'np.load(path, allow_pickle=whether)',
    'numpy saves': 'np.save(path, X, allow_pickle=True)',
    'mxnet': 'mx.nd.load(path)',
    'mxnet from': 'from mxnet import nd\nnd.load(path)',
    'mxnet np': 'from mxnet import npx\nnpx.load(path)',
    'gluon': 'net.load_parameters(path)',
    'gluon placed': 'self.net.load_parameters(path, ctx=ctx)',
    'gluon old': 'net.load_params(path, ctx)',
    'gluon symbol': 'from mxnet import gluon\n'
    'gluon.SymbolBlock.imports(path)',
    'eval': 'eval(text)',
    'exec': 'exec(text)',
    'compile': "run = compile(text, '', 'exec')",
    'eval handed on': 'f = eval',
    'builtins': 'import builtins\nbuiltins.exec(text)',
    'system': 'import os\nos.system(text)',
    'system renamed': 'from os import system as s\ns(text)',
    'popen': 'import os\nos.popen(text)',
    'shell': 'import subprocess\nsubprocess.run(text, shell=True)',
    'shell perhaps': 'run(text, shell=whether)',
    'getoutput': 'import subprocess\nsubprocess.getoutput(text)',
    'yaml': 'import yaml\nyaml.load(text)',
    'mktemp': 'import tempfile\ntempfile.mktemp()',
    'unverified': 'get(url, verify=False)',
    'fetch': 'import requests\nrequests.get(url)',
    'fetch urllib': 'from urllib.request import urlopen\nurlopen(url)',
    'fetch hub': "import torch\ntorch.hub.load_state_dict_from_url('x')",
    'fetch pooch': 'import pooch\npooch.retrieve(url, known_hash=None)',
    'http': "URL = 'http://example.org/x.zip'",
    'http in pieces': "url = f'http://{host}/x.zip'",
    'extract': 'archive.extractall(folder)',
    'extract one': 'archive.extract(member)',
    'unpack': 'import shutil\nshutil.unpack_archive(path)',
    'file as code': 'spec.loader.exec_module(module)',
}
GOOD = {
    'torch eval': 'net.eval()',
    're compile': 'import re\nre.compile(text)',
    'torch compile': 'import torch\ntorch.compile(net)',
    'numpy': 'np.load(path, allow_pickle=False)',
    'arrays': 'backend.set_parameters(net, arrays)',
    'no shell': 'import subprocess\nsubprocess.run([a], shell=False)',
    'https': "URL = 'https://example.org/x.zip'",
    'a variable': 'def f(code, socket):\n    code.x = socket.y',
    'extractfile': 'archive.extractfile(member)',
    'json': 'import json\njson.loads(text)',
    'literal': 'import ast\nast.literal_eval(text)',
}


@pytest.mark.parametrize('name', BAD)
def test_what_is_bad_is_found(name):
    assert findings(BAD[name], 'd2lbert/planted.py')


@pytest.mark.parametrize('name', GOOD)
def test_what_is_good_is_not(name):
    assert findings(GOOD[name], 'd2lbert/planted.py') == []


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
    **{
        f'protocol {number}': lambda trap, number=number: pickle.dumps(
            {'a': trap}, number
        )
        for number in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    'npy': npy,
    'npz': npz,
    'gzip': lambda trap: gzip.compress(pickle.dumps(trap)),
    'zip': zipped,
    # What torch.save writes
    'torch': lambda trap: zipped(trap, 'archive/data.pkl'),
}


@pytest.fixture(params=FORMS)
def trap(request, tmp_path):
    """A pickle, and the file that is there once it has been opened."""
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


@pytest.mark.parametrize('name', ['x', 'x.zip', 'x.tar', 'x.tgz', 'x.txt'])
def test_a_pickle_is_no_corpus(trap, tmp_path, name, one_backend):
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
    manifest, arrays = checkpoints.paths(3)
    seal(checkpoints, trap)  # with checksums that are right
    assert arrays.read_bytes() == trap
    with pytest.raises(D2LBertError):
        checkpoints.load()
    manifest.write_bytes(trap)
    with pytest.raises(D2LBertError):
        checkpoints.load()


@pytest.mark.parametrize('sealed', [False, True])
def test_a_pickle_is_no_run(trap, saved, backend_name, tmp_path, sealed):
    """Not even with checksums that are right."""
    files = {
        path.name: path.read_bytes()
        for path in saved(backend_name).iterdir()
        if path.is_file()
    }
    folder = tmp_path / 'run'
    folder.mkdir()
    for name in ('weights.safetensors', 'metrics.jsonl', 'run.json'):
        for file, data in files.items():
            (folder / file).write_bytes(data)
        (folder / name).write_bytes(trap)
        if sealed and name != 'run.json':
            content = read_manifest(folder / 'run.json')
            content['files'][name] = describe_file(trap)
            (folder / 'run.json').write_bytes(to_manifest(content))
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
    assert faults == set(range(1, 41))


def assert_tests_exist(text):
    """`text`: `file::name`, then more names of the same file as `::name`."""
    found = re.findall(r'`(\w+\.py)?::(\w+)`', text)
    assert found and text.count('::') == len(found)
    file = ''
    for given, name in found:
        file = given or file
        code = (ROOT / 'tests' / file).read_text('utf-8')
        assert f'\ndef {name}(' in code, f'{file} has no {name}'
