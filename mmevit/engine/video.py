"""Videos, for tools/infer.py and for OpenMMLab's inferencers, which lack them."""

import contextlib
from functools import wraps
from importlib.util import find_spec

import cv2
import mmcv

from mmevit.errors import ConfigError
from mmevit.files import written_whole

VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.webm')


@contextlib.contextmanager
def open_writer(path, rate, size):
    """Open a video for writing, which appears when it is whole.

    Args:
        path (Path): The file, ``.mp4``.
        rate (float): Frames per second.
        size (tuple[int, int]): Width and height.

    Yields:
        cv2.VideoWriter: Takes frames, BGR.
    """
    with written_whole(path) as file:
        writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*'mp4v'), rate, size)
        yield writer
        writer.release()


def accept_videos(inferencer_class):
    """Have an inferencer of mmdet or mmsegmentation take the path of a video as its frames.

    They are read one by one as they are needed.

    Args:
        inferencer_class (type): ``DetInferencer`` or ``MMSegInferencer``, which is changed.
    """
    list_inputs = inferencer_class._inputs_to_list

    @wraps(list_inputs)
    def list_inputs_or_frames(inferencer, inputs):
        if not isinstance(inputs, str) or not inputs.lower().endswith(VIDEO_SUFFIXES):
            return list_inputs(inferencer, inputs)
        frames = mmcv.VideoReader(inputs)
        if len(frames) < 1:
            raise ConfigError(f'The video {inputs} cannot be read: it has no frames.')
        return frames

    inferencer_class._inputs_to_list = list_inputs_or_frames


if find_spec('mmdet'):
    from mmdet.apis import DetInferencer

    accept_videos(DetInferencer)
if find_spec('mmseg'):
    from mmseg.apis import MMSegInferencer

    accept_videos(MMSegInferencer)
