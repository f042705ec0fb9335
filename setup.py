"""Put configs and tools where mim and mmengine look for them; pyproject.toml has the metadata."""

import os
import shutil
from pathlib import Path

from setuptools import setup


def link_folder(source: Path, target: Path) -> None:
    """Link a folder, or copy it where the system does not allow links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    else:
        shutil.rmtree(target, ignore_errors=True)
    try:
        target.symlink_to(os.path.relpath(source, target.parent), target_is_directory=True)
    except OSError:
        shutil.copytree(source, target)


ROOT = Path(__file__).parent
MIM_FOLDER = ROOT / 'mmevit/.mim'
link_folder(ROOT / 'configs', MIM_FOLDER / 'configs/efficientvit')
link_folder(ROOT / 'tools', MIM_FOLDER / 'tools')
setup()
