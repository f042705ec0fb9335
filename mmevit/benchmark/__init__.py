"""How fast networks are, side by side on one machine, in each of the forms that they can run in."""

from .measuring import Setting, benchmark, best_forms
from .models import find_model, find_models, select_paper_models
from .report import format_table, write_plot, write_table

__all__ = [
    'Setting',
    'benchmark',
    'best_forms',
    'find_model',
    'find_models',
    'format_table',
    'select_paper_models',
    'write_plot',
    'write_table',
]
