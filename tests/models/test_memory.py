import pytest
import timm
import torch
from measuring import peak_memory
from needing import needs_nanoseconds

from mmevit.models import EfficientViT

pytestmark = needs_nanoseconds


def training_peak(features_of, images):
    return peak_memory(lambda: features_of(images).sum().backward())


@torch.no_grad()
def inference_peak(model, images):
    return peak_memory(lambda: model(images))


def build(arch, **kwargs):
    return EfficientViT(arch, window_sizes=(7, 7, 4), out_indices=(2,), **kwargs)


def last_map(model):
    return lambda images: model(images)[0]


@pytest.fixture
def images():
    return torch.rand(4, 3, 224, 224)


def test_peak_memory_counts_tensors_until_they_are_freed():
    def step():
        first = torch.ones(1000)
        del first
        return torch.ones(2000) + 1

    assert 16000 <= peak_memory(step) < 17000


@pytest.mark.parametrize('arch', ['m0', 'm5'])
def test_training_memory_is_at_most_timms(arch, images):
    theirs = training_peak(timm.create_model(f'efficientvit_{arch}').forward_features, images)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        ours = training_peak(last_map(build(arch).to(memory_format=memory_format)), images)
        assert ours <= 1.005 * theirs


def test_gradient_checkpointing_saves_30_percent_of_memory(images):
    plain = training_peak(last_map(build('m0')), images)
    assert training_peak(last_map(build('m0', with_cp=True)), images) <= 0.7 * plain


def test_folded_inference_memory_is_at_most_unfolded(images):
    model = build('m0').eval()
    plain = inference_peak(model, images)
    model.switch_to_deploy()
    assert inference_peak(model, images) <= plain
