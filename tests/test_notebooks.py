"""The notebooks are executed as they stand in the repository, and can be run again."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / 'docs/notebooks'


def read(name):
    return nbformat.read(NOTEBOOKS / f'{name}.ipynb', as_version=4)


def printed(notebook):
    """All text that the cells of a notebook gave."""
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    return '\n'.join(
        output.get('text') or output.get('data', {}).get('text/plain', '') for output in outputs
    )


@pytest.mark.parametrize('name', ['detection', 'speed'])
def test_notebook_was_executed_from_top_to_bottom_without_an_error(name):
    cells = [cell for cell in read(name).cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {
        'stream',
        'display_data',
        'execute_result',
    }
    assert any('image/png' in output.get('data', {}) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['detection', 'speed'])
def test_notebook_runs(name, tmp_path):
    notebook = read(name)
    resources = {'metadata': {'path': str(tmp_path)}}
    NotebookClient(notebook, timeout=1200, resources=resources).execute()
    text = printed(notebook)
    if name == 'detection':
        assert float(re.search(r"'mAP_50': ([\d.]+)", text)[1]) > 0.3
    else:
        differences = re.findall(r'relative difference: (\S+)', text)
        assert len(differences) == 2 and all(float(value) < 1e-4 for value in differences)
