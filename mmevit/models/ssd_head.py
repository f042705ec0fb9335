"""Patch of mmdet's SSD head, which does not predict in mmdet 3 (open-mmlab/mmdetection#11063).

Its ``predict()`` reads ``loss_cls``, which other heads have to transform their scores.
"""

from typing import Any

from mmdet.models import SSDHead

head_class: Any = SSDHead
if not hasattr(head_class, 'loss_cls'):
    head_class.loss_cls = None
