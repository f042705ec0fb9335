"""The documentation builds, and agrees with the code."""

import ast
import re
import sys
from importlib import import_module
from pathlib import Path

import mmpretrain
import pytest
import torch
import yaml
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.config import Config

from mmevit.models import EfficientViT

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *ROOT.glob('docs/**/*.md')]
METAFILES = [yaml.safe_load(path.read_text()) for path in ROOT.glob('configs/*_metafile.yml')]
MODELS_BY_CONFIG = {
    Path(model['Config']).name: model for metafile in METAFILES for model in metafile['Models']
}
# Headings of docs/troubleshooting.md that the code composes of parts, or that a library prints.
COMPOSED = {
    "No module named 'mmcv._ext'",
    '… is installed, but mmevit needs …',
    '… has … strides, but … returns … maps',
    '….mean has … values, but model.backbone.in_channels is …',
    '….num_classes is …, but the … data has … classes',
    '….topk is …, but …',
}


def table_rows(path, first_cell):
    """The cells of the table rows of a page whose first cell matches a pattern."""
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in (ROOT / path).read_text().splitlines()
        if line.startswith('|')
    ]
    return [row for row in rows if re.fullmatch(first_cell, row[0])]


def published(model):
    """The first published result of a model of the index; '' without one."""
    if 'Results' not in model:
        return ''
    return f'{next(iter(model["Results"][0]["Metrics"].values())):.1f}'


@pytest.mark.parametrize('page', ['README.md', 'docs/models.md'])
def test_table_of_archs_agrees_with_the_code(page):
    rows = [row for row in table_rows(page, r'm\d') if '.' in row[2]]
    assert [row[0] for row in rows] == list(EfficientViT.arch_zoo)
    for arch, channels, params, macs, top1, *_ in rows:
        model = MODELS_BY_CONFIG[f'evit_{arch}_in1k.py']
        assert channels == ', '.join(map(str, EfficientViT.arch_zoo[arch].embed_dims))
        assert params == f'{model["Metadata"]["Parameters"] / 1e6:.3f}'
        assert macs == f'{model["Metadata"]["FLOPs"] / 1e6:.1f}'
        assert top1 == published(model)


def test_table_of_layers_agrees_with_the_code():
    rows = [row for row in table_rows('docs/models.md', r'm\d') if '.' not in row[2]]
    assert [row[0] for row in rows] == list(EfficientViT.arch_zoo)
    for row in rows:
        arch = EfficientViT.arch_zoo[row[0]]
        sizes = (arch.depths, arch.num_heads, arch.kernel_sizes)
        assert row[1:] == [', '.join(map(str, size)) for size in sizes]


def test_every_config_is_in_the_tables_with_its_name_accuracy_and_weights():
    rows = {row[0].strip('`'): row[1:] for row in table_rows('docs/models.md', r'`.*\.py`')}
    assert set(rows) == {path.name for path in ROOT.glob('configs/*.py')}
    for config, model in MODELS_BY_CONFIG.items():
        assert rows[config][0] == f'`{model["Name"]}`'
        assert rows[config][2].partition(' ')[0] == published(model)
        assert rows[config][3] == (f'`{model["Weights"]}`' if 'Weights' in model else '')
    named = {config for config, row in rows.items() if len(row) == 4 and row[0]}
    assert named == set(MODELS_BY_CONFIG)


def test_every_ablation_is_in_its_table_with_its_parameters():
    rows = {row[0]: row for row in table_rows('docs/analysis/ablation.md', '.*')}
    for path in ROOT.glob('configs/ablation/*.py'):
        comment = re.match(r'# (.*?)[;.]\s', path.read_text())[1]
        with torch.device('meta'):
            model = mmpretrain.get_model(Config.fromfile(path))
        params = sum(parameter.numel() for parameter in model.parameters())
        assert rows[comment][1] == f'{params / 1e6:.2f}'


def test_every_tool_is_documented():
    pages = '\n'.join(page.read_text() for page in PAGES)
    tools = [path.name for end in ('py', 'sh') for path in ROOT.glob(f'tools/**/*.{end}')]
    assert len(tools) > 15
    assert [name for name in tools if name not in pages] == []


def messages():
    """The strings of the code; ``…`` stands for the values in them."""
    for folder in 'mmevit', 'tools':
        for path in (ROOT / folder).rglob('*.py'):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield ''.join(
                        part.value if isinstance(part, ast.Constant) else '…'
                        for part in node.values
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_errors_in_troubleshooting_are_those_of_the_code():
    page = (ROOT / 'docs/troubleshooting.md').read_text()
    quotes = re.findall(r'^### `(.*)`$', page, re.MULTILINE)
    assert len(quotes) > 80
    code = '\0'.join(messages())
    unknown = {quote for quote in quotes for part in quote.split('…') if part not in code}
    assert unknown == COMPOSED


def test_paths_in_the_pages_exist():
    for page in PAGES:
        text = page.read_text()
        for path in re.findall(r'\b((?:tools|configs|tests|mmevit)/[\w/.-]+\.(?:py|sh|txt))', text):
            # The reader creates these.
            if not re.search('animals|photos|_NAME', path):
                assert (ROOT / path).exists(), f'{page}: {path}'


def test_readme_config_replaces_the_backbone_of_a_stock_detector(tmp_path):
    code = re.search(r'```python\n(_base_.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)[1]
    path = tmp_path / 'config.py'
    path.write_text(code)
    with torch.device('meta'):
        detector = MMDET_MODELS.build(Config.fromfile(path).model)
    assert type(detector.backbone).__name__ == 'EfficientViT'
    assert type(detector.neck).__name__ == 'EfficientViTFPN'


@pytest.mark.skipif(sys.version_info < (3, 11), reason='its tools need Python 3.11')
def test_site_builds_without_warnings_and_documents_every_public_name(run_tool, tmp_path):
    from mkdocstrings import Inventory

    result = run_tool(
        *(sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', tmp_path / 'site'),
        env=dict(NO_MKDOCS_2_WARNING='1'),
    )
    assert result.returncode == 0, result.stdout
    with open(tmp_path / 'site/objects.inv', 'rb') as file:
        documented = {name.rpartition('.')[2] for name in Inventory.parse_sphinx(file)}
    main = ('models', 'checkpoint', 'datasets', 'checks', 'engine', 'apis', 'deploy', 'runtime')
    for package in (*main, 'benchmark', 'analysis'):
        assert set(import_module(f'mmevit.{package}').__all__) <= documented
