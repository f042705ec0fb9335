"""Images and videos to predict, and the names of the files with their predictions."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .errors import ConfigError

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.webm')


def name_inputs(inputs: Iterable[str | Path], out_dir: str | Path | None = None) -> dict[str, Path]:
    """List images and videos by the names of their outputs.

    A name is that of the file without its suffix, or with it if several files only differ in it.

    Raises:
        ConfigError: If an input is missing or not supported, if two have the same name, or if
            predictions in ``out_dir`` could replace one.
    """
    known = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    paths = {}
    for path in map(Path, inputs):
        if not path.exists():
            raise ConfigError(f'{path} is missing. Give an image, a video, or a directory of them.')
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        files = [file for file in files if file.suffix.lower() in known]
        if not files:
            fault = 'contains no image or video' if path.is_dir() else 'is not an image or video'
            raise ConfigError(f'{path} {fault}. Supported suffixes: {", ".join(known)}.')
        paths.update({file.resolve(): file for file in files})
    for folder in [] if out_dir is None else [Path(out_dir, 'vis'), Path(out_dir, 'preds')]:
        for target, path in paths.items():
            # Links would be replaced too.
            parents = {*target.parents, *path.parent.resolve().parents, path.parent.resolve()}
            if folder.resolve() in parents:
                raise ConfigError(
                    f'{path} is in {folder}, where predictions are written. Give another --out-dir.'
                )
    stems = Counter(path.stem for path in paths.values())
    named = {}
    for path in paths.values():
        name = path.stem if stems[path.stem] == 1 else path.name
        if name in named:
            raise ConfigError(
                f'{named[name]} and {path} have the same output file. Use two runs with different '
                '--out-dir.'
            )
        named[name] = path
    return named
