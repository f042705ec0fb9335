import pytest
import torch
from making_models import TINY
from torch import nn

from mmevit.deploy import fold
from mmevit.deploy.networks import make_exportable


@pytest.fixture(scope='module')
def network(randomised):
    """Make a small folded backbone."""
    torch.manual_seed(0)
    return make_exportable(nn.ModuleDict(dict(backbone=fold(randomised(TINY)))), 'backbone')
