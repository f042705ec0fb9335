"""Predict images, folders and videos with an exported file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from mmevit.utils.errors import UserError, warn
from mmevit.utils.images import Size, pad, read_image
from mmevit.utils.inputs import VIDEO_SUFFIXES, name_inputs
from mmevit.utils.videos import Video

from .pipeline import apply, choose_steps
from .results import Prediction, convert
from .sessions import Session


class Predictor:
    """Predict on the CPU with a complete model that ``tools/export.py`` wrote.

    Args:
        path: An ONNX (``.onnx``) or OpenVINO (``.xml``) file.
        num_threads: CPU threads. Default: as many as the runtime chooses.
        batch_size: Maximum number of consecutive images of the same size in a batch.
    """

    def __init__(self, path: str | Path, num_threads: int = 0, batch_size: int = 1) -> None:
        self.session = Session(path, num_threads)
        self.options = self.session.metadata['input']
        can_crop = 'logits' in self.session.outputs
        self.loader, self.steps = choose_steps(self.options['pipeline'], can_crop)
        fixed_batch, self.num_channels, *self.fixed_size = self.options['shape']
        self.batch_size = fixed_batch or batch_size

    def __call__(self, source: str | Path | np.ndarray | Iterable) -> Any:
        """Predict an image, several, a folder or a video.

        Args:
            source: A file or an array, BGR (H, W, 3) uint8 as of ``cv2.imread()``; several of them;
                a folder; or a video.

        Returns:
            A :class:`Prediction`; a list for several; for a folder a dict by file name without
            suffix, of the readable images; for a video an iterator, which reads frame by frame.
        """
        if isinstance(source, np.ndarray) and source.ndim < 4:
            return self.predict([source])[0]
        if not isinstance(source, (str, Path)):
            images = (x if isinstance(x, np.ndarray) else self.read(x) for x in source)
            return [prediction for *_, prediction in self.stream(enumerate(images))]
        if Path(source).is_dir():
            files = self.read_all(name_inputs([source]))
            return {name: prediction for name, _, prediction in self.stream(files)}
        if Path(source).suffix.lower() in VIDEO_SUFFIXES:
            frames = enumerate(Video(source))
            return (prediction for *_, prediction in self.stream(frames))
        return self.predict([self.read(source)])[0]

    def read(self, path: str | Path) -> np.ndarray:
        """Read an image as the model needs it, BGR (H, W, C); raise UserError if it is corrupt."""
        return read_image(path, self.loader)

    def read_all(self, paths: Mapping[str, Path]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield names and images of readable files, which are not videos; warn of others."""
        for name, path in paths.items():
            if path.suffix.lower() not in VIDEO_SUFFIXES:
                try:
                    image = self.read(path)
                except UserError as error:
                    warn(f'{error} It is skipped.')
                else:
                    yield name, image

    def stream(
        self, images: Iterable[tuple[Any, np.ndarray]]
    ) -> Iterator[tuple[Any, np.ndarray, Prediction]]:
        """Predict pairs of a key and an image in batches, and add the prediction to each."""
        for _, group in groupby(images, key=lambda pair: pair[1].shape):
            while batch := list(islice(group, self.batch_size)):
                predictions = self.predict([image for _, image in batch])
                for pair, prediction in zip(batch, predictions, strict=True):
                    yield *pair, prediction

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Predict at most ``batch_size`` images of the same size, BGR (H, W, C) uint8."""
        inputs, contents = zip(*map(self.prepare, images), strict=True)
        size, divisor = inputs[0].shape[:2], self.options['pad_size_divisor']
        padded, limit = [-(-side // divisor) * divisor for side in size], self.fixed_size
        if None not in limit:
            if padded[0] > limit[0] or padded[1] > limit[1]:
                raise UserError(
                    f'The image has {padded[0]}x{padded[1]} pixels after the test pipeline, but '
                    f'the file is for {limit[0]}x{limit[1]}. Export it with --dynamic batch size.'
                )
            padded = limit
        batch = np.stack([pad(image, padded, self.options['pad_value']) for image in inputs])
        # Files with a fixed batch size are filled up with repeated images.
        count = self.options['shape'][0] or len(batch)
        batch = batch[np.arange(count) % len(batch)].transpose(0, 3, 1, 2)
        arrays = dict(images=np.ascontiguousarray(batch))
        if 'image_sizes' in self.session.inputs:
            arrays['image_sizes'] = np.array([size] * count, np.float32)
        outputs, results = self.session(arrays), []
        for index, (image, content) in enumerate(zip(images, contents, strict=True)):
            own = {name: output[index] for name, output in outputs.items()}
            results.append(convert(own, self.session.metadata, image.shape[:2], content, padded))
        return results

    def prepare(self, image: np.ndarray) -> tuple[np.ndarray, Size]:
        """Return the normalized image (h, w, C), and its size without the padding of ``Pad``."""
        image = np.atleast_3d(image)
        if image.dtype != np.uint8 or image.shape[2:] != (self.num_channels,):
            raise UserError(
                f'The image is {image.dtype} of shape {image.shape}, but the model needs uint8 of '
                f'shape (H, W, {self.num_channels}).'
            )
        content, options = image.shape[:2], self.options
        image = image.astype(np.float32) if self.loader.get('to_float32') else image
        for step in self.steps:
            image = apply(step, image)
            content = content if step['type'] == 'Pad' else image.shape[:2]
        image = (image[..., ::-1] if options['channels'] == 'RGB' else image).astype(np.float32)
        if options['mean'] is not None:
            image = (image - np.float32(options['mean'])) / np.float32(options['std'])
        return image, content
