"""The same labelled images in the formats of several labelling tools.

Each writer takes photos by split; the only split of data that are not split is ``''``.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import yaml
from making_datasets import random_image
from PIL import Image

CLASSES = ('disk', 'ring ö', 'square')


@dataclass
class Photo:
    """An image and its objects: name of the class, and left, top, right and bottom."""

    name: str
    image: Image.Image
    boxes: list[tuple[str, tuple[float, ...]]] = field(default_factory=list)


def draw_photos(counts=None, seed=0):
    """Draw random images by split, with boxes on whole pixels."""
    rng = np.random.default_rng(seed)
    photos = {split: [] for split in counts or dict(train=5, val=2, test=2)}
    for split, count in (counts or dict(train=5, val=2, test=2)).items():
        for number in range(count):
            image = random_image(rng, (40, 90))
            boxes = []
            for _ in range(rng.integers(1, 4)):
                corners = rng.integers(0, np.array(image.size) - 10, (1, 2)).repeat(2, 0)
                corners[1] = rng.integers(corners[0] + 5, image.size)
                label = CLASSES[rng.integers(len(CLASSES))]
                boxes.append((label, tuple(map(float, corners.ravel()))))
            photos[split].append(Photo(f'{split} ü {number}.png', image, boxes))
    return photos


def plain_photos(count=3, size=(64, 48)):
    """Make images of one colour that are not split, each with one object."""
    image = Image.new('RGB', size)
    return {'': [Photo(f'{n}.png', image, [('cell', (8, 8, 40, 40))]) for n in range(1, count + 1)]}


def save_image(photo, folder):
    folder.mkdir(parents=True, exist_ok=True)
    photo.image.save(folder / photo.name)
    return folder / photo.name


def write_xml(path, boxes, size=(64, 48), difficult=0):
    """Write the labels of an image, with corners that are counted from 1."""
    root = ElementTree.Element('annotation')
    sides = ElementTree.SubElement(root, 'size')
    for name, side in zip(('width', 'height'), size, strict=True):
        ElementTree.SubElement(sides, name).text = str(side)
    for label, box in boxes:
        item = ElementTree.SubElement(root, 'object')
        ElementTree.SubElement(item, 'name').text = label
        ElementTree.SubElement(item, 'difficult').text = str(difficult)
        corners = ElementTree.SubElement(item, 'bndbox')
        for name, side in zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True):
            ElementTree.SubElement(corners, name).text = f'{side + 1:g}'
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(path, encoding='utf-8')


def write_voc(root, photos):
    """Write Pascal VOC, with lists of the images of each split."""
    for split, own in photos.items():
        for photo in own:
            save_image(photo, root / 'JPEGImages')
            label_file = root / 'Annotations' / f'{Path(photo.name).stem}.xml'
            write_xml(label_file, photo.boxes, photo.image.size)
        if split:
            path = root / 'ImageSets/Main' / f'{split}.txt'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(''.join(f'{Path(photo.name).stem}\n' for photo in own))


def list_classes(photos):
    return sorted({label for own in photos.values() for photo in own for label, _ in photo.boxes})


def write_yolo(root, photos, layout='images/{}'):
    """Write YOLO; ``layout`` is the folder of the images of a split."""
    classes = list_classes(photos)
    content = dict(names=classes, nc=len(classes))
    for split, own in photos.items():
        folder = root / layout.format(split)
        # Roboflow's paths begin with ../, wherever the file is.
        content[split] = ('../' if layout.startswith('{}') else '') + layout.format(split)
        for photo in own:
            save_image(photo, folder)
            lines = []
            for label, (left, top, right, bottom) in photo.boxes:
                box = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
                values = [v / side for v, side in zip(box, photo.image.size * 2, strict=True)]
                lines.append(' '.join(map(str, [classes.index(label), *values])))
            label_file = root / layout.replace('images', 'labels').format(split)
            label_file.mkdir(parents=True, exist_ok=True)
            (label_file / f'{Path(photo.name).stem}.txt').write_text('\n'.join(lines))
    content = {split: path for split, path in content.items() if split}
    (root / 'data.yaml').write_text(yaml.safe_dump(content, allow_unicode=True))


def write_roboflow_yolo(root, photos):
    names = dict(train='train', val='valid', test='test')
    write_yolo(root, {names[split]: own for split, own in photos.items()}, '{}/images')


def make_shape(label, points, shape_type='polygon', **fields):
    return dict(label=label, points=points, shape_type=shape_type, group_id=None) | fields


def write_shapes(path, shapes, size=(64, 48)):
    content = dict(version='5.5.0', shapes=shapes, imagePath='x.png', imageData=None)
    path.write_text(json.dumps(content | dict(imageWidth=size[0], imageHeight=size[1])))


def write_labelme(root, photos):
    for split, own in photos.items():
        for photo in own:
            path = save_image(photo, root / split)
            shapes = [
                # From any corner to the other.
                make_shape(label, [[box[2], box[1]], [box[0], box[3]]], 'rectangle')
                for label, box in photo.boxes
            ]
            write_shapes(path.with_suffix('.json'), shapes, photo.image.size)


def make_coco(photos, classes, folder=''):
    """Make the content of an annotation file, with ids that do not count from 0 or 1."""
    content = dict(images=[], annotations=[], categories=[])
    for number, name in enumerate(classes):
        content['categories'].append(dict(id=3 * number + 4, name=name))
    for number, photo in enumerate(photos, start=70):
        width, height = photo.image.size
        name = f'{folder}{photo.name}'
        content['images'].append(dict(id=number, file_name=name, width=width, height=height))
        for label, (left, top, right, bottom) in photo.boxes:
            content['annotations'].append(
                dict(
                    id=len(content['annotations']) + 1,
                    image_id=number,
                    category_id=3 * classes.index(label) + 4,
                    bbox=[left, top, right - left, bottom - top],
                    area=(right - left) * (bottom - top),
                    iscrowd=0,
                )
            )
    return content


def write_coco(root, photos):
    """Write COCO with a folder of images and an annotation file for each split."""
    classes = list_classes(photos)
    (root / 'annotations').mkdir(parents=True)
    for split, own in photos.items():
        for photo in own:
            save_image(photo, root / (split or 'images'))
        path = root / 'annotations' / f'instances_{split or "default"}.json'
        path.write_text(json.dumps(make_coco(own, classes)))


def write_roboflow_coco(root, photos):
    """Write COCO as Roboflow does, with a category above the classes that is not used."""
    for split, own in photos.items():
        folder = root / dict(val='valid').get(split, split)
        for photo in own:
            save_image(photo, folder)
        content = make_coco(own, list_classes(photos))
        for category in content['categories']:
            category['supercategory'] = 'shapes'
        content['categories'].insert(0, dict(id=0, name='shapes', supercategory='none'))
        (folder / '_annotations.coco.json').write_text(json.dumps(content))


WRITERS = {
    'voc': write_voc,
    'yolo': write_yolo,
    'yolo of Roboflow': write_roboflow_yolo,
    'labelme': write_labelme,
    'coco': write_coco,
    'coco of Roboflow': write_roboflow_coco,
}
