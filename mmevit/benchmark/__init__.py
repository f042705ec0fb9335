"""Interleaved speed measurements of networks, eager, compiled or exported."""

from .forms import Setting
from .measuring import benchmark, best_forms
from .models import find_model, find_models, select_models
from .report import format_results, write_plot, write_results

__all__ = [
    'Setting',
    'benchmark',
    'best_forms',
    'find_model',
    'find_models',
    'format_results',
    'select_models',
    'write_plot',
    'write_results',
]
