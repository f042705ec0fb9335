"""The notebooks are executed as they stand in the repository, and can be run again."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATHS = sorted((Path(__file__).parents[1] / 'docs/notebooks').glob('*.ipynb'))


def run(name, folder):
    (path,) = (path for path in PATHS if path.stem == name)
    notebook = nbformat.read(path, as_version=4)
    resources = {'metadata': {'path': str(folder)}}
    NotebookClient(notebook, timeout=2400, resources=resources).execute()
    return [output for cell in notebook.cells for output in cell.get('outputs', [])]


@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)
def test_notebook_was_executed_without_an_error_and_names_no_folder_of_that_machine(path):
    assert not re.findall('/(?:tmp|home|root|usr|Users|work)/', path.read_text())
    cells = nbformat.read(path, as_version=4).cells
    cells = [cell for cell in cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    kinds = {output.output_type for output in outputs}
    assert kinds <= {'stream', 'display_data', 'execute_result'}
    assert any('image/png' in output.get('data', {}) for output in outputs)


@pytest.mark.slow
def test_detection_notebook_runs_and_learns_to_detect(tmp_path):
    outputs = run('detection', tmp_path)
    texts = [output.data['text/plain'] for output in outputs if 'execution_count' in output]
    (metrics,) = (ast.literal_eval(text) for text in texts if "'mAP'" in text)
    assert metrics['mAP'] > 0.3


@pytest.mark.slow
def test_speed_notebook_runs_and_what_it_folds_and_exports_agrees(tmp_path):
    text = '\n'.join(output.get('text', '') for output in run('speed', tmp_path))
    differences = re.findall(r'relative difference: (\S+)', text)
    assert len(differences) == 2 and all(float(value) < 1e-4 for value in differences)
