"""BERT pretraining from *Dive into Deep Learning*, in each framework.

    import d2lbert
    run = d2lbert.pretrain(backend='torch', steps=50)
    print(run.summary())

One definition (`d2lbert.bert`) and one trainer (`d2lbert.trainer`) reproduce
both tabs of the chapter. A reader of it imports a tab instead:
`from d2lbert import torch as d2l`, or `mxnet`, or `jax`. Importing this
package imports no framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from d2lbert.frameworks import FRAMEWORKS, check_package

if TYPE_CHECKING:
    from d2lbert.evaluation.fill_mask import fill, follows
    from d2lbert.finetuning.inference import infer
    from d2lbert.finetuning.run import FinetunedRun, load_finetuned
    from d2lbert.finetuning.training import finetune
    from d2lbert.representation import represent
    from d2lbert.runs.evaluating import evaluate
    from d2lbert.runs.pretraining import pretrain
    from d2lbert.runs.run import Run, load_run

__version__ = '0.1.0'
__all__ = [
    'FinetunedRun',
    'Run',
    'evaluate',
    'fill',
    'finetune',
    'follows',
    'infer',
    'load_finetuned',
    'load_run',
    'pretrain',
    'represent',
]

_HOMES = {
    'FinetunedRun': 'd2lbert.finetuning.run',
    'finetune': 'd2lbert.finetuning.training',
    'infer': 'd2lbert.finetuning.inference',
    'load_finetuned': 'd2lbert.finetuning.run',
    'Run': 'd2lbert.runs.run',
    'evaluate': 'd2lbert.runs.evaluating',
    'fill': 'd2lbert.evaluation.fill_mask',
    'follows': 'd2lbert.evaluation.fill_mask',
    'load_run': 'd2lbert.runs.run',
    'pretrain': 'd2lbert.runs.pretraining',
    'represent': 'd2lbert.representation',
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _HOMES or name in FRAMEWORKS:
        check_package()
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
