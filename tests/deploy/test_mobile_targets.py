"""Classifiers and complete models in LiteRT, ExecuTorch and ncnn, against PyTorch and mmdet."""

from itertools import product

import pytest
import torch
from making_models import build_model
from mmengine.config import Config
from test_complete_models import check_all, make_case

from mmevit.deploy import TARGETS, export, load_exported, try_to_fold
from mmevit.deploy.exporting import compare
from mmevit.deploy.networks import make_exportable
from mmevit.models import EfficientViT

# The packages that write files.
PACKAGES = dict(litert='litert_torch', executorch='executorch', ncnn='pnnx')
MODELS = ('rtmdet_evit_m0', 'retinanet_evit_m0', 'semantic-fpn_evit_m4')
# SSD's head has a softmax. LiteRT cannot convert its neck.
CASES = [*product(PACKAGES, MODELS), ('ncnn', 'mmdet::ssd/ssd300_coco.py')]
FAST = ('ncnn', 'rtmdet_evit_m0')


@pytest.mark.slow
@pytest.mark.parametrize('arch', EfficientViT.arch_zoo)
@pytest.mark.parametrize('target', PACKAGES)
def test_classifiers_have_the_logits_of_pytorch(arch, target, tmp_path):
    pytest.importorskip(PACKAGES[target])
    torch.manual_seed(0)
    model = build_model(Config.fromfile(f'configs/evit_{arch}_in1k.py'))
    network = make_exportable(try_to_fold(model))
    images = torch.rand(20, 3, 224, 224)
    path = tmp_path / f'model{TARGETS[target]}'
    export(network, images[:1], path, target)
    session = load_exported(path)
    assert max(compare(network, session, (image[None],)) for image in images) < 1e-5


@pytest.mark.parametrize(
    ('target', 'name'),
    [pytest.param(*case, marks=() if case == FAST else pytest.mark.slow) for case in CASES],
)
def test_complete_models_match_the_librarys_predictions(target, name, tmp_path):
    pytest.importorskip(PACKAGES[target])
    model, batches = make_case(name, tmp_path)
    network = make_exportable(model)
    images, sizes, _ = batches[0]
    path = tmp_path / f'model{TARGETS[target]}'
    export(network, (images, sizes)[: len(network.input_names)], path, target)
    session = load_exported(path)
    has_candidates = target != 'litert' and network.task == 'detection'
    assert ('suppression' in session.metadata) == has_candidates
    check_all(session, network, batches[:1])
