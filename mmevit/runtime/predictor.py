"""Predict images, folders and videos with an exported file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmevit.utils.errors import UserError, warn
from mmevit.utils.images import Size, batch_by_shape, pad, read_image, round_up
from mmevit.utils.inputs import VIDEO_SUFFIXES, name_inputs
from mmevit.utils.videos import Video

from .pipeline import apply_step, choose_steps
from .results import Prediction, make_prediction
from .sessions import open_exported


class Predictor:
    """Predict on the CPU with a complete model that ``tools/export.py`` wrote.

    Args:
        path: An ONNX (``.onnx``), OpenVINO (``.xml``), LiteRT (``.tflite``), ExecuTorch (``.pte``)
            or ncnn (``.param``) file.
        num_threads: CPU threads. Default: as many as the runtime chooses.
        batch_size: Maximum number of consecutive images of the same size in a batch.
    """

    def __init__(self, path: str | Path, num_threads: int = 0, batch_size: int = 1) -> None:
        self.metadata, self.run = open_exported(path, num_threads)
        self.options = self.metadata['input']
        can_crop = self.metadata['task'] == 'classification'
        self.loader, self.steps = choose_steps(self.options['pipeline'], can_crop)
        self.batch_size = self.options['shape'][0] or batch_size

    def __call__(self, source: str | Path | np.ndarray | Iterable) -> Any:
        """Predict a file or an array, BGR (H, W, 3) uint8, several of them, a folder or a video.

        Returns:
            A :class:`Prediction`; a list for several; for a folder a dict by file name without
            suffix, of the readable images; for a video an iterator, which reads frame by frame.
        """
        is_path = isinstance(source, (str, Path))
        if is_path and Path(source).is_dir():
            return {name: x for name, _, x in self.stream(self.read_all(name_inputs([source])))}
        if is_path and Path(source).suffix.lower() in VIDEO_SUFFIXES:
            return (x for *_, x in self.stream((source, frame) for frame in Video(source)))
        if is_path or (isinstance(source, np.ndarray) and source.ndim < 4):
            return self([source])[0]
        pairs = (
            (f'array {i}', x) if isinstance(x, np.ndarray) else (x, read_image(x, self.loader))
            for i, x in enumerate(source)
        )
        return [prediction for *_, prediction in self.stream(pairs)]

    def read_all(self, paths: Mapping[str, Path]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield names and images of readable files, which are not videos; warn of others."""
        for name, path in paths.items():
            if path.suffix.lower() not in VIDEO_SUFFIXES:
                try:
                    yield name, read_image(path, self.loader)
                except UserError as error:
                    warn(f'{error} It is skipped.')

    def stream(self, images: Iterable[tuple]) -> Iterator[tuple[Any, np.ndarray, Prediction]]:
        """Predict pairs of a key and an image in batches, and add the prediction to each."""
        for keys, arrays in batch_by_shape(images, self.batch_size):
            yield from zip(keys, arrays, self.predict(keys, arrays), strict=True)

    def predict(self, names: Sequence, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Predict at most ``batch_size`` images of the same size, BGR (H, W, C) uint8."""
        inputs, contents = zip(*map(self.prepare, names, images), strict=True)
        size, divisor = inputs[0].shape[:2], self.options['pad_size_divisor']
        height, width = padded = [round_up(side, divisor) for side in size]
        count, _, *fixed = self.options['shape']
        padded = padded if None in fixed else fixed
        if height > padded[0] or width > padded[1]:
            raise UserError(
                f'{names[0]} has {height}x{width} pixels after the test pipeline, but the file is '
                f'for {fixed[0]}x{fixed[1]}. Export it with --dynamic batch size if the target '
                'supports it, or with a test pipeline that resizes to this size.'
            )
        batch = np.stack([pad(image, padded, self.options['pad_value']) for image in inputs])
        # Files with a fixed batch size are filled up with repeated images.
        batch = batch[np.arange(count or len(batch)) % len(batch)].transpose(0, 3, 1, 2)
        image_sizes = np.array([size] * len(batch), np.float32)
        outputs = self.run(dict(images=np.ascontiguousarray(batch), image_sizes=image_sizes))
        rows = [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
        sizes = images[0].shape[:2], contents[0], padded
        found = [make_prediction(row, self.metadata, sizes) for row in rows[: len(images)]]
        return [replace(prediction, loader=self.loader) for prediction in found]

    def prepare(self, name: Any, image: np.ndarray) -> tuple[np.ndarray, Size]:
        """Return the normalized image (h, w, C), and its size without the padding of ``Pad``."""
        image, options = np.atleast_3d(image), self.options
        num_channels, content = options['shape'][1], image.shape[:2]
        if image.dtype != np.uint8 or image.shape[2:] != (num_channels,):
            raise UserError(
                f'{name} is {image.dtype} of shape {image.shape}, but the model needs uint8 of '
                f'shape (H, W, {num_channels}).'
            )
        image = image.astype(np.float32) if self.loader.get('to_float32') else image
        for step in self.steps:
            image = apply_step(step, image)
            content = content if step['type'] == 'Pad' else image.shape[:2]
        image = image[..., ::-1] if options['channels'] == 'RGB' else image
        if image.dtype == np.uint8:
            return look_up(self.normalized, image), content
        return self.normalize(image.astype(np.float32)), content

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Normalize float32 values (..., C)."""
        mean, std = self.options['mean'] or 0, self.options['std'] or 1
        return (image - np.float32(mean)) / np.float32(std)

    @cached_property
    def normalized(self) -> np.ndarray:
        """Each normalized value of a byte, (256, C): faster to look up than to compute."""
        values = np.arange(256, dtype=np.float32)[:, None]
        return self.normalize(np.repeat(values, self.options['shape'][1], axis=1))


def look_up(table: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Map bytes (H, W, C) by the columns of a table (256, C)."""
    channels = [table[:, index].take(image[..., index]) for index in range(image.shape[2])]
    return np.stack(channels, axis=-1)
