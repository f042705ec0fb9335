"""Peaks of what PyTorch allocates as its profiler counts it, so the same on every machine."""

import pytest
import timm
import torch
from needing import needs_nanoseconds
from torch.profiler import ProfilerActivity, profile

from mmevit.models import EfficientViT

ARCHS = ['m0', 'm5']
pytestmark = needs_nanoseconds


def peak_memory(step):
    """The most bytes that a step holds at once beside what there was before, on the CPU."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]')
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    assert peak > 0
    return peak


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
    return torch.rand(8, 3, 224, 224)


def test_peak_memory_counts_tensors_until_they_are_freed():
    def step():
        first = torch.ones(1000)
        del first
        return torch.ones(2000) + 1

    assert 16000 <= peak_memory(step) < 17000


@pytest.mark.parametrize('arch', ARCHS)
def test_training_memory_is_at_most_timms(arch, images):
    theirs = training_peak(timm.create_model(f'efficientvit_{arch}').forward_features, images)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        ours = training_peak(last_map(build(arch).to(memory_format=memory_format)), images)
        assert ours <= 1.005 * theirs


@pytest.mark.parametrize('arch', ARCHS)
def test_gradient_checkpointing_saves_30_percent_of_memory(arch, images):
    plain = training_peak(last_map(build(arch)), images)
    assert training_peak(last_map(build(arch, with_cp=True)), images) <= 0.7 * plain


@pytest.mark.parametrize('arch', ARCHS)
def test_folded_inference_memory_is_at_most_unfolded(arch, images):
    model = build(arch).eval()
    plain = inference_peak(model, images)
    model.switch_to_deploy()
    assert inference_peak(model, images) <= plain
