"""The forms of the benchmark on a GPU."""

import pytest
import torch

from mmevit.benchmark import Setting, benchmark, find_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='PyTorch finds no GPU'),
]
ALL = ['eager', 'folded', 'compiled', 'cudagraph', 'traced', 'aoti', 'training']


@pytest.mark.parametrize(
    ('model', 'dtype', 'forms', 'tolerance'),
    [
        ('efficientvit-m0', 'float32', ALL, 1e-4),
        ('efficientvit-m0', 'bfloat16', ['eager', 'cudagraph', 'training'], 0.05),
        ('efficientvit-m0', 'float16', ['eager', 'cudagraph', 'training'], 0.01),
        ('timm::efficientvit_m0', 'float32', ['folded', 'cudagraph'], 1e-4),
    ],
)
def test_forms_match_eager(model, dtype, forms, tolerance):
    setting = Setting(batch_size=2, device='cuda', rounds=1, seconds=0)
    rows = benchmark([find_model(model)], [f'{form}-{dtype}' for form in forms], setting)
    for row in rows:
        assert 'problem' not in row, row
        assert 'training' in row['form'] or row['difference'] < tolerance, row
