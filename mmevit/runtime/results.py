"""Predictions as arrays, in the JSON formats of COCO and ``tools/infer.py``, and as pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmevit.utils.errors import UserError
from mmevit.utils.images import Size, choose_color, read_image
from mmevit.utils.masks import encode, find_boxes, resize_masks, resize_segments

INSTANCE_OFFSET = 1000  # mmdet's, in panoptic segments


@dataclass
class Prediction:
    """The prediction of an image, in pixels of that image.

    Fields that the task does not have are None.
    """

    size: Size  # height and width of the image
    classes: Sequence[str]  # names
    boxes: Any = None  # (N, 4) float32, as x1, y1, x2, y2, by descending score
    scores: Any = None  # (N,) float32; for classification (classes,)
    labels: Any = None  # (N,) int64; for classification (1,), the best class
    masks: Any = None  # (N, H, W) bool
    segments: Any = None  # (H, W) int64, labels; for panoptic models label + 1000 * instance
    logits: Any = None  # (classes,) float32, for classification
    num_things: int | None = None  # number of classes with instances, for panoptic models
    # How the file was read: whether it was turned as its EXIF data say, and its channels.
    loader: dict[str, Any] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the JSON of ``tools/infer.py``, in which segments are an array."""
        if self.segments is not None:
            return self.count_segments()
        labels, scores = self.labels.tolist(), self.scores.tolist()
        if self.boxes is None:
            best = dict(pred_label=labels[0], pred_score=scores[labels[0]])
            return dict(pred_scores=scores, **best, pred_class=self.classes[labels[0]])
        masks = {} if self.masks is None else dict(masks=[encode(mask) for mask in self.masks])
        return dict(labels=labels, scores=scores, bboxes=self.boxes.tolist(), **masks)

    def count_segments(self) -> dict[str, Any]:
        """Return the segments that have a class with their number of pixels, and their map."""
        things, rows = self.num_things, []
        ids, counts = np.unique(self.segments, return_counts=True)
        for i, pixels in zip(ids.tolist(), counts.tolist(), strict=True):
            label = i if things is None else i % INSTANCE_OFFSET
            if 0 <= label < len(self.classes):
                row = dict(label=label, name=self.classes[label], pixels=pixels)
                rows.append(row if things is None else dict(id=i, **row, isthing=label < things))
        if things is None:
            dtype = np.uint8 if len(self.classes) < 256 else np.uint16
            return dict(classes=rows, segments=self.segments.astype(dtype))
        # As in COCO's panoptic format: id = R + 256 G + 65536 B.
        rgb = self.segments[..., None] >> np.array([0, 8, 16]) & 255
        return dict(segments_info=rows, segments=rgb.astype(np.uint8))

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict]:
        """Return boxes and masks in COCO's result format; ``category_ids`` default to labels."""
        if self.boxes is None:
            raise UserError('to_coco() needs boxes, but the model has none. Use to_dict().')
        xywh, rows = self.boxes.copy(), []
        xywh[:, 2:] -= xywh[:, :2]
        for label, score, box in zip(self.labels, self.scores, xywh, strict=True):
            category_id = category_ids[label] if category_ids else int(label)
            row = dict(category_id=category_id, bbox=box.tolist(), score=float(score))
            masks = {} if self.masks is None else dict(segmentation=encode(self.masks[len(rows)]))
            rows.append(dict(image_id=image_id, **row, **masks))
        return rows

    def draw(self, image: str | Path | np.ndarray, score_thr: float = 0.3) -> Image.Image:
        """Draw on the image, a file or BGR (H, W, 3), what has this score or more."""
        if not isinstance(image, np.ndarray):
            image = read_image(image, self.loader)
        image = np.atleast_3d(image)
        pixels = np.broadcast_to(image[..., 2::-1], (*self.size, 3)).copy()
        boxes = [] if self.boxes is None else self.boxes.tolist()
        kept = [i for i in range(len(boxes)) if self.scores[i] >= score_thr][::-1]
        areas = [] if self.masks is None else [(self.labels[i], self.masks[i]) for i in kept]
        content = {} if self.segments is None else self.count_segments()
        for row in content.get('segments_info', content.get('classes', ())):
            i, count = row.get('id', row['label']), len(self.classes)
            # Instances are numbered across classes.
            areas.append((i if i < count else count + i // INSTANCE_OFFSET, self.segments == i))
        for number, mask in areas:
            pixels[mask] = (pixels[mask] + np.array(choose_color(number))) // 2
        picture = Image.fromarray(pixels)
        font, draw = ImageFont.load_default(max(10, max(self.size) // 50)), ImageDraw.Draw(picture)
        found = [(self.labels[i], self.scores[i], boxes[i]) for i in kept]
        if self.logits is not None:
            found = [(self.labels[0], self.scores[self.labels[0]], (2, 2))]
        for label, score, (x, y, *end) in found:
            if end:
                draw.rectangle([x, y, max(x, end[0]), max(y, end[1])], outline=choose_color(label))
            text = f'{self.classes[label]}: {score:.2f}'
            draw.text((x, y), text, choose_color(label), font, stroke_width=1, stroke_fill='black')
        return picture


def make_prediction(outputs: dict[str, Any], metadata: dict[str, Any], sizes: tuple) -> Prediction:
    """Convert the outputs for an image, arrays by name, to pixels of the image.

    ``sizes`` are those of the image, of the resized image, and of it with padding.
    """
    size, content, _ = sizes
    logits, labels = outputs.get('logits'), outputs.get('labels', outputs.get('segments', ()))
    classes = metadata['classes'] or [f'class {i}' for i in range(INSTANCE_OFFSET)]
    if metadata.get('num_things') is None:
        count = np.max(labels, initial=0) + 1 if logits is None else len(logits)
        classes = [*classes, *(f'class {i}' for i in range(len(classes), count))]
    if logits is not None:
        scores = np.exp(logits - logits.max())
        scores, labels = scores / scores.sum(), np.array([scores.argmax()])
        return Prediction(size, classes, scores=scores, labels=labels, logits=logits)
    if 'segments' in outputs:
        segments = resize_segments(outputs['segments'], size, content)
        return Prediction(size, classes, segments=segments, num_things=metadata.get('num_things'))
    found = {name: array[outputs['labels'] >= 0] for name, array in outputs.items()}
    found['boxes'] /= np.array([content[1] / size[1], content[0] / size[0]] * 2, np.float32)
    if 'masks' in found:
        found['masks'] = resize_masks(found['masks'], found['boxes'], metadata['masks'], sizes)
        if not found['boxes'].any():  # of models without boxes
            found['boxes'] = find_boxes(found['masks'])
    return Prediction(size, classes, **found)
