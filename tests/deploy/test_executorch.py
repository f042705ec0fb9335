"""ExecuTorch files against PyTorch, and what XNNPACK runs of them."""

import numpy as np
import pytest
import torch
from making_models import IMAGES, METADATA
from test_complete_models import make_case
from torchvision.ops import batched_nms

pytest.importorskip('executorch')  # needs a newer PyTorch than the original OpenMMLab

from mmevit.deploy import export, load_exported
from mmevit.deploy.exporting import compare
from mmevit.deploy.networks import make_exportable
from mmevit.deploy.to_executorch import count_undelegated
from mmevit.runtime.sessions import open_exported
from mmevit.runtime.suppression import suppress
from mmevit.utils.errors import ConfigError


@pytest.fixture(scope='module')
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp('executorch') / 'network.pte'
    export(network, IMAGES, path, 'executorch', metadata=METADATA)
    return path


def test_maps_and_metadata(network, file):
    session = load_exported(file)
    assert session.metadata == METADATA
    assert compare(network, session, (IMAGES,)) < 1e-5


def test_xnnpack_runs_all_but_views(file):
    others = {'aten_view_copy_default', 'aten_alias_copy_default'}
    assert {*count_undelegated(file)} <= others


def test_another_number_of_threads_is_refused_while_files_are_in_use(file):
    session = load_exported(file)
    for load in (load_exported, open_exported):
        with pytest.raises(ConfigError, match='^ExecuTorch has .* threads for all files of a'):
            load(file, num_threads=torch.get_num_threads() + 1)
    del session


@pytest.mark.slow
@pytest.mark.parametrize(
    ('dtype', 'tolerance', 'size'), [('float16', 1e-2, 1.1), ('int8', 0.5, 0.7)]
)
def test_lower_types_are_close(dtype, tolerance, size, network, file, tmp_path):
    path = tmp_path / 'network.pte'
    export(network, IMAGES, path, 'executorch', dtype=dtype, batches=[(IMAGES,)])
    session = load_exported(path)
    assert 1e-5 < compare(network, session, (IMAGES,)) < tolerance
    assert all(map_.dtype == torch.float32 for map_ in session(IMAGES))
    assert path.stat().st_size < size * file.stat().st_size


@pytest.mark.parametrize('share', [0, 0.3, 0.9, 1])
@pytest.mark.parametrize('class_agnostic', [False, True])
def test_suppression_is_that_of_torchvision(share, class_agnostic):
    torch.manual_seed(0)
    corners = torch.rand(200, 2) * 50
    boxes = torch.cat([corners, corners + 5 + torch.rand(200, 2) * 20], dim=1)
    scores, labels = torch.rand(200) * (torch.rand(200) >= share), torch.arange(200) % 3
    found = [part.numpy()[None] for part in (boxes, scores, labels)]
    found = suppress(*found, iou_threshold=0.5, max_num=60, class_agnostic=class_agnostic)
    is_box = scores > 0
    kept = torch.nonzero(is_box)[:, 0]
    groups = torch.zeros_like(labels) if class_agnostic else labels
    kept = kept[batched_nms(boxes[kept], scores[kept], groups[kept], 0.5)][:60]
    count = len(kept)
    for array, expected in zip(found, (boxes, scores, labels), strict=True):
        assert np.array_equal(array[0, :count], expected[kept].numpy())
    assert not found[1][0, count:].any() and (found[2][0, count:] == -1).all()


def test_models_that_need_suppression_in_the_middle_are_refused(tmp_path):
    model, batches = make_case('mask-rcnn_evit_m0', tmp_path)
    images, sizes, _ = batches[0]
    with pytest.raises(ConfigError, match='MaskRCNN needs it before its last step'):
        export(make_exportable(model), (images, sizes), tmp_path / 'model.pte', 'executorch')
    assert not any(tmp_path.glob('*.pte'))
