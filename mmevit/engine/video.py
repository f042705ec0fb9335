"""Videos, for tools/infer.py and for OpenMMLab's inferencers, which lack them."""

import contextlib
from functools import wraps

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
        rate (float): Frames per second; 25 are written where it is not between 1 and 240, as of
            videos that do not tell theirs.
        size (tuple[int, int]): Width and height.

    Yields:
        cv2.VideoWriter: Takes frames, BGR.

    Raises:
        ConfigError: If OpenCV cannot write such a video.
    """
    rate = rate if 1 <= rate <= 240 else 25
    with written_whole(path) as file:
        writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*'mp4v'), rate, size)
        if not writer.isOpened():
            raise ConfigError(
                f'OpenCV cannot write {path}, {size[0]}x{size[1]}: give --no-save-vis.'
            )
        try:
            yield writer
        finally:
            writer.release()


def accept_videos(inferencer_class):
    """Have an inferencer of mmdet or mmsegmentation take the path of a video as its frames.

    Args:
        inferencer_class (type): ``DetInferencer`` or ``MMSegInferencer``, which is changed.
    """
    list_inputs = inferencer_class._inputs_to_list

    @wraps(list_inputs)
    def list_inputs_or_frames(inferencer, inputs):
        if not isinstance(inputs, str) or not inputs.lower().endswith(VIDEO_SUFFIXES):
            return list_inputs(inferencer, inputs)
        frames = Frames(inputs)
        if next(iter(frames), None) is None:
            raise ConfigError(f'The video {inputs} cannot be read: it has no frames.')
        return frames

    inferencer_class._inputs_to_list = list_inputs_or_frames


class Frames(mmcv.VideoReader):
    """The frames of a video, BGR (H, W, 3), read one by one as they are needed.

    There are none if it cannot be read. Some videos do not tell how many they have, and then
    ``len()`` is 0.
    """

    def __len__(self):
        return max(self.frame_cnt, 0)
