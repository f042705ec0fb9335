"""ncnn files against PyTorch."""

import pytest
import torch
from making_models import IMAGES, METADATA, build_model
from mmengine.config import Config
from test_complete_models import check_all, make_case
from torch import nn

pytest.importorskip('pnnx')
pytest.importorskip('ncnn')

from mmevit.deploy import export, load_exported, try_to_fold
from mmevit.deploy.exporting import compare
from mmevit.deploy.networks import make_exportable
from mmevit.models import EfficientViT
from mmevit.utils.errors import ConfigError


def test_maps_metadata_and_smaller_weights(network, tmp_path):
    sizes = []
    for dtype, tolerance in (('float32', 1e-5), ('float16', 1e-2)):
        path = tmp_path / 'network.param'
        export(network, IMAGES, path, 'ncnn', dtype=dtype, metadata=METADATA)
        session = load_exported(path)
        assert session.metadata == METADATA
        assert compare(network, session, (IMAGES,)) < tolerance
        sizes.append(path.with_suffix('.bin').stat().st_size)
    assert sizes[1] < 0.7 * sizes[0]


def test_one_image_or_several(network, tmp_path):
    export(network, IMAGES[:1], tmp_path / 'network.param', 'ncnn')
    session = load_exported(tmp_path / 'network.param')
    together = session(IMAGES)
    for index, image in enumerate(IMAGES):
        for map_, one in zip(together, session(image[None]), strict=True):
            assert torch.equal(map_[index], one[0])


def test_unsupported_operators_are_refused(tmp_path):
    class Product(nn.Module):
        def forward(self, images):
            return images.cumprod(dim=1)

    with pytest.raises(ConfigError, match=r'ncnn cannot run this model \(torch.cumprod'):
        export(Product(), torch.rand(1, 3, 4, 4), tmp_path / 'model.param', 'ncnn')
    assert not any(tmp_path.iterdir())


def test_detectors_are_refused(tmp_path):
    model, batches = make_case('rtmdet_evit_m0', tmp_path)
    images, sizes, _ = batches[0]
    with pytest.raises(ConfigError, match='ncnn does not support detectors'):
        export(make_exportable(model), (images, sizes), tmp_path / 'model.param', 'ncnn')


@pytest.mark.slow
@pytest.mark.parametrize('arch', EfficientViT.arch_zoo)
def test_classifiers_have_the_logits_of_pytorch(arch, tmp_path):
    torch.manual_seed(0)
    model = build_model(Config.fromfile(f'configs/evit_{arch}_in1k.py'))
    network = make_exportable(try_to_fold(model))
    images = torch.rand(20, 3, 224, 224)
    export(network, images, tmp_path / 'model.param', 'ncnn')
    assert compare(network, load_exported(tmp_path / 'model.param'), (images,)) < 1e-5


@pytest.mark.slow
def test_segmentors_match_the_librarys_predictions(tmp_path):
    model, batches = make_case('semantic-fpn_evit_m4', tmp_path)
    network = make_exportable(model)
    export(network, batches[0][0], tmp_path / 'model.param', 'ncnn')
    check_all(load_exported(tmp_path / 'model.param'), network, batches[:1])
