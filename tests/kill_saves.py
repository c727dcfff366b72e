"""Kill a save of a checkpoint at each thing it does, and look what is left.

    python tests/kill_saves.py calls FOLDER N     kill and fail at calls
    python tests/kill_saves.py strace FOLDER N    kill at system calls

`N`: at how many calls one is tried, 1 for every call.

A real process saves and really dies; afterwards the folder must load the
checkpoint from before or the new one, bit by bit, and the next save must
clean up. Prints how often it did what, as JSON.
"""

import builtins
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from d2lbert.data import files
from d2lbert.data.files import FORMAT, NO_CHECKSUM, seal
from d2lbert.errors import InputError, RunError
from d2lbert.runs.checkpoint import Checkpoint, Checkpoints

CALLS = ('open', 'close', 'fsync', 'replace', 'unlink', 'mkdir', 'listdir')


def small(step):
    """A checkpoint without a network, different for each step."""
    rng = np.random.default_rng(step)
    shapes = {'weights.a': (3, 2), 'm.a': (3, 2), 'v.a': (3, 2)}
    return Checkpoint(
        config={'steps': 9, 'backend': 'none'},
        data={'vocabulary': 'some words'},
        environment={'workers': 1},
        arrays={
            **{
                name: abs(rng.standard_normal(shape, np.float32))
                for name, shape in shapes.items()
            },
            'steps': rng.standard_normal((step, 4)),
        },
    )


def same(checkpoint, other):
    """Whether two checkpoints are equal bit by bit."""
    return (
        checkpoint.config == other.config
        and checkpoint.arrays.keys() == other.arrays.keys()
        and all(
            np.array_equal(array, other.arrays[name])
            and array.dtype == other.arrays[name].dtype
            for name, array in checkpoint.arrays.items()
        )
    )


def forge(path, manifest, arrays=None):
    """Write a checkpoint of this manifest, with a checksum that is right."""
    metadata = {'manifest': manifest, 'sha256': NO_CHECKSUM}
    data = save(small(3).arrays if arrays is None else arrays, metadata)
    path.write_bytes(b''.join(seal(data)))


def manifest(**changes):
    about = vars(small(3)).copy()
    del about['arrays']
    return json.dumps({'format': FORMAT, **about, **changes})


# ---- what is in the folder before, and after -------------------------


def prepare(folder, old):
    """Make a folder with the checkpoints of some steps."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for step in old:
        Checkpoints(folder).save(small(step))


def save_next(folder, step):
    """What the process does that is killed: go on and save."""
    checkpoints = Checkpoints(folder)
    if checkpoints.find():
        checkpoints.load()
    checkpoints.save(small(step))


def check(folder, old, step):
    """See that a checkpoint loads; return which: 'old', 'new' or 'none'."""
    checkpoints = Checkpoints(folder)
    with warnings.catch_warnings():
        # Nothing that a killed save leaves is taken for damage
        warnings.simplefilter('error')
        found = checkpoints.load() if checkpoints.find() else None
    if found is None:
        assert not old, 'a checkpoint was lost'
        left = 'none'
    else:
        assert found.num_steps in (*old[-1:], step), found.num_steps
        assert same(found, small(found.num_steps))
        left = 'new' if found.num_steps == step else 'old'
    checkpoints.save(small(step + 1))
    names = {path.name for path in checkpoints.folder.iterdir()}
    assert len(names) == len(checkpoints.known) <= 2, names
    assert same(checkpoints.load(), small(step + 1))
    return left


# ---- faults in this process ------------------------------------------


class Faults:
    """Counts the calls of a save and does something at one of them."""

    def __init__(self, number, action):
        self.left = number
        self.action = action
        self.happened = False
        for name in CALLS:
            setattr(os, name, self.faulty(getattr(os, name)))
        files.open = self.open

    def faulty(self, call):
        def wrapped(*args, **kwargs):
            now = self.is_now()
            if now and self.action == 'fail':
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if now and self.action == 'before':
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **kwargs)
            if now and self.action == 'after':
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    def is_now(self):
        self.left -= 1
        self.happened |= self.left == 0
        return self.left == 0

    def open(self, *args):
        file = self.faulty(builtins.open)(*args)
        return FaultyFile(self, file)


class FaultyFile:
    """A file that may be killed in the middle of a write."""

    def __init__(self, faults, file):
        self.file = file
        self.fileno = file.fileno
        self.flush = faults.faulty(file.flush)
        self.close = faults.faulty(file.close)
        self.whole = faults.faulty(file.write)
        self.faults = faults

    def write(self, data):
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        self.whole(data[half:])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.flush()
        self.close()


def at_calls(folder, old, step, every):
    """Kill or fail a save at its calls; return what was left, counted."""
    counts = Counter()
    for action in ('before', 'after', 'fail'):
        for number in range(1, 1000, every):
            prepare(folder, old)
            child = os.fork()
            if child == 0:
                os._exit(save_with_fault(folder, step, number, action))
            _, status = os.waitpid(child, 0)
            status = os.waitstatus_to_exitcode(status)
            assert status in (-signal.SIGKILL, 0, 3, 4), status
            left = check(folder, old, step)
            if status == 0:
                break
            what = 'killed' if status == -signal.SIGKILL else 'failed'
            counts[f'{what}, {left} left'] += 1
    return counts


def save_with_fault(folder, step, number, action):
    """Save; return the exit status: 0 done, 3 refused, 4 no harm done."""
    faults = Faults(number, action)
    try:
        save_next(folder, step)
    except (RunError, InputError, OSError):
        return 3
    return 4 if faults.happened else 0


# ---- faults from outside ---------------------------------------------


def at_system_calls(folder, old, step, every):
    """Kill a save at its system calls, which strace lists."""
    prepare(folder, old)
    log = folder.with_name('strace.log')
    assert traced_save(folder, step, '-o', str(log)) == 0
    calls = Counter(re.findall(r'^(?:\d+ +)?(\w+)\(', log.read_text(), re.M))
    counts = Counter()
    each = [(name, n + 1) for name in calls for n in range(calls[name])]
    for name, n in each[::every]:
        prepare(folder, old)
        status = traced_save(
            folder, step, f'--inject={name}:signal=SIGKILL:when={n}'
        )
        left = check(folder, old, step)
        if status:
            assert status == -signal.SIGKILL, status
            counts[f'killed, {left} left'] += 1
    counts['system calls'] = len(calls)
    return counts


def traced_save(folder, step, *options):
    """Save under strace; return the exit status."""
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        save_next(folder, step)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    strace = subprocess.Popen(
        ['strace', '-p', str(child), *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    while 'attached' not in (line := strace.stderr.readline()):
        if not line:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            sys.exit(77)
    os.kill(child, signal.SIGCONT)
    _, status = os.waitpid(child, 0)
    strace.communicate()
    return os.waitstatus_to_exitcode(status)


def main():
    mode, folder, every = sys.argv[1:]
    kill = {'calls': at_calls, 'strace': at_system_calls}[mode]
    counts = Counter()
    for old in [(), (2,), (1, 2)] if mode == 'calls' else [(1, 2)]:
        counts += kill(Path(folder) / 'run', old, 3, int(every))
    print(json.dumps(counts))


if __name__ == '__main__':
    main()
