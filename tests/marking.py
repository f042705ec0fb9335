"""Marking repetitions of a test."""

import pytest


def slow_but(fast, values):
    """Parametrise over values, as slow tests but for those that are fast enough to run always."""
    return [
        pytest.param(value, marks=() if value in fast else pytest.mark.slow) for value in values
    ]
