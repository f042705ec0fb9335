"""Looking into networks: what they see, where their time goes, what they could do without."""

from .grad_cam import grad_cam, plot_grad_cams
from .heads import head_similarity, plot_similarity
from .runtime import memory_bound_share, plot_shares, profile_runtime, sum_rows

__all__ = [
    'grad_cam',
    'head_similarity',
    'memory_bound_share',
    'plot_grad_cams',
    'plot_shares',
    'plot_similarity',
    'profile_runtime',
    'sum_rows',
]
