"""Comparing tensors."""

import torch


def assert_near(outputs, expected, tolerance=1e-5):
    """Check a tensor, or each of several, to a tolerance relative to its largest value."""
    if isinstance(expected, torch.Tensor):
        outputs, expected = [outputs], [expected]
    for actual, wanted in zip(outputs, expected, strict=True):
        error = (actual - wanted).abs().max() / wanted.abs().max()
        assert error < tolerance, error
