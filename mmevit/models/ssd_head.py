"""Patch of mmdet's SSD head, which does not predict in mmdet 3 (open-mmlab/mmdetection#11063).

Its ``predict()`` reads ``loss_cls``, which other heads have to transform their scores.
"""

from mmdet.models import SSDHead

if not hasattr(SSDHead, 'loss_cls'):
    SSDHead.loss_cls = None
