"""Reading and writing of videos."""

import contextlib

import cv2
import mmcv

from mmevit.utils.errors import ConfigError
from mmevit.utils.files import atomic_write

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
    with atomic_write(path) as file:
        writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*'mp4v'), rate, size)
        if not writer.isOpened():
            raise ConfigError(
                f'OpenCV cannot write {path}, {size[0]}x{size[1]}: give --no-save-vis.'
            )
        try:
            yield writer
        finally:
            writer.release()


class Frames(mmcv.VideoReader):
    """The frames of a video, BGR (H, W, 3), read one by one as they are needed.

    There are none if it cannot be read. Some videos do not tell how many they have, and then
    ``len()`` is 0.
    """

    def __len__(self):
        return max(self.frame_cnt, 0)
