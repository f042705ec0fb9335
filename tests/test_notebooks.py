"""The notebook is executed as it stands in the repository, and can be run again."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / 'docs/notebooks/speed.ipynb'


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_notebook_was_executed_from_top_to_bottom_without_an_error(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    kinds = {output.output_type for output in outputs}
    assert kinds <= {'stream', 'display_data', 'execute_result'}
    assert any('image/png' in output.get('data', {}) for output in outputs)


@pytest.mark.slow
def test_notebook_runs_and_what_it_folds_and_exports_agrees(notebook, tmp_path):
    resources = {'metadata': {'path': str(tmp_path)}}
    NotebookClient(notebook, timeout=1200, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    text = '\n'.join(output.get('text', '') for output in outputs)
    differences = re.findall(r'relative difference: (\S+)', text)
    assert len(differences) == 2 and all(float(value) < 1e-4 for value in differences)
