"""Analyses: Grad-CAM, head similarity, channel importance, runtime profile, detections."""

from .detections import (
    count_confusions,
    evaluate_boxes,
    plot_confusions,
    plot_precision_recall,
)
from .grad_cam import grad_cam
from .heads import head_similarity
from .importance import channel_importance, count_params, prune, shares_kept
from .pixels import PixelConfusionMetric, plot_pixel_confusions
from .plots import plot_grad_cams, plot_kept, plot_shares, plot_similarity
from .runtime import memory_bound_share, profile_runtime, sum_rows

__all__ = [
    'PixelConfusionMetric',
    'channel_importance',
    'count_confusions',
    'count_params',
    'evaluate_boxes',
    'grad_cam',
    'head_similarity',
    'memory_bound_share',
    'plot_confusions',
    'plot_grad_cams',
    'plot_kept',
    'plot_pixel_confusions',
    'plot_precision_recall',
    'plot_shares',
    'plot_similarity',
    'profile_runtime',
    'prune',
    'shares_kept',
    'sum_rows',
]
