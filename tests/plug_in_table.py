"""Reads the tables in docs/plug_in.md: what changes in which stock configs."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / 'docs/plug_in.md'
ROWS = [row.split('|')[2:4] for row in DOCS.read_text().splitlines() if row.startswith('| ')]
CELLS = {
    name: cell.strip('` ')
    for names, cell in ROWS
    for name in re.findall(r'`(mm\w+::[^`]+)`', names)
}
NECKS = {name: neck for name, neck in CELLS.items() if name.startswith(('mmdet::', 'mmseg::'))}
# Configs of libraries that are not installed with mmevit: all that changes next to the backbone.
OTHERS = {name: settings for name, settings in CELLS.items() if name not in NECKS}


def write_config(path, base, neck, others=''):
    """Write a config that changes another one as the table says, and other parts of its model."""
    others += 'pretrained=None,' if base.startswith('mmseg::') else ''
    return write_settings(path, base, f'neck={neck}, {others}')


def write_settings(path, base, settings, imports=('mmevit',)):
    """Write a config that has this backbone, and other settings of its model."""
    path.write_text(f"""
_base_ = '{base}'
custom_imports = dict(imports={list(imports)}, allow_failed_imports=False)
model = dict(
    backbone=dict(_delete_=True, type='EfficientViT', arch='m4'),
    {settings}
)
""")
    return path
