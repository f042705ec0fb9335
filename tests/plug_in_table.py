"""Reads the table in docs/plug_in.md: which stock configs take which neck."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / 'docs/plug_in.md'
ROWS = [row.split('|')[2:4] for row in DOCS.read_text().splitlines() if row.startswith('| ')]
NECKS = {name: neck.strip('` ') for names, neck in ROWS for name in re.findall('`(mm.*?)`', names)}


def write_config(path, base, neck, others=''):
    """Write a config that changes another one as the table says, and other parts of its model."""
    others += 'pretrained=None,' if base.startswith('mmseg::') else ''
    path.write_text(f"""
_base_ = '{base}'
custom_imports = dict(imports=['mmevit'], allow_failed_imports=False)
model = dict(
    backbone=dict(_delete_=True, type='EfficientViT', arch='m4'),
    neck={neck},
    {others}
)
""")
    return path
