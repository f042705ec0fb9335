"""Read labelled data in common formats, write COCO files and segmentation maps."""

from pathlib import Path
from types import ModuleType

from mmevit.utils.errors import ConfigError

from . import coco, labelme, mask_images, voc, yolo
from .files import SPLIT_NAMES, Files
from .labels import LabelledData, LabelledImage, Shape
from .matching import IMAGE_FOLDERS, LABEL_FOLDERS
from .splits import complete_splits
from .writing import write_coco, write_seg_maps

__all__ = [
    'FOLDERS_OF_DATA',
    'FORMATS',
    'LabelledData',
    'LabelledImage',
    'Shape',
    'complete_splits',
    'read_labels',
    'write_coco',
    'write_seg_maps',
]

# Modules with find(files), which lists the label files, and read(files, label_files).
FORMATS: dict[str, ModuleType] = dict(
    coco=coco, voc=voc, yolo=yolo, labelme=labelme, masks=mask_images
)

# Usual names of folders that are not classes; there are pictures of a mask.
FOLDERS_OF_DATA = {*IMAGE_FOLDERS, *LABEL_FOLDERS, *SPLIT_NAMES} - {'mask'}


def read_labels(
    root: str | Path, format: str | None = None, prefers_maps: bool = False
) -> LabelledData | None:
    """Read labelled objects of a folder, None if it contains no label files.

    Args:
        root: The folder, which is not changed.
        format: A key of ``FORMATS``. Recognised by default.
        prefers_maps: Whether segmentation maps are read rather than objects, as VOC has both.

    Raises:
        ConfigError: If the folder is missing, contains several formats, invalid files or YOLO
            labels without class names, or nothing is labelled.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new('RGB', (64, 48)).save(folder + '/1.png')
        ...     _ = Path(folder, '1.txt').write_text('0 0.5 0.5 0.5 0.5')
        ...     _ = Path(folder, 'classes.txt').write_text('cell')
        ...     read_labels(folder).splits['']
        [LabelledImage(path='1.png', height=48, width=64, shapes=(Shape(label='cell', \
box=(16.0, 12.0, 48.0, 36.0), segmentation=None, is_ignored=False),))]
    """
    files = Files(root)
    names = FORMATS if format is None else [format]
    found = {name: label_files for name in names if (label_files := FORMATS[name].find(files))}
    if 'masks' in found and len(found) > 1:
        names = ['masks'] if prefers_maps else [name for name in found if name != 'masks']
        found = {name: found[name] for name in names}
    if not found and format is None:
        if label_file := next(filter(files.has_image, files.ending('.txt')), None):
            raise ConfigError(
                f'{root} has text files with the names of images, such as {label_file}, but no '
                'class names. For YOLO labels add data.yaml or classes.txt; if the folders are '
                'classes, pass --task classification.'
            )
        return None
    if not found:
        raise ConfigError(f'{root} contains no labels in the format {format}. Choose another.')
    if len(found) > 1:
        raise ConfigError(
            f'{root} contains labels in the formats {" and ".join(found)}. Choose one with '
            '--format.'
        )
    ((name, label_files),) = found.items()
    data: LabelledData = FORMATS[name].read(files, label_files)
    if not data.shapes:
        reasons = data.faults.describe(data.faults.counts)
        raise ConfigError(
            f'{root} contains no labelled object in the format {name}'
            + (f': {reasons}.' if reasons else '.')
        )
    return data
