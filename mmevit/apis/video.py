"""Read videos with mmcv."""

import mmcv


class Frames(mmcv.VideoReader):
    """The frames of a video, BGR (H, W, 3), read one by one.

    There are none if the video cannot be read. If it does not contain its number of frames,
    ``len()`` is 0.
    """

    def __len__(self) -> int:
        return max(self.frame_cnt, 0)
