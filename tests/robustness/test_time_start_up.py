import re

import pytest


@pytest.mark.slow
def test_both_commands_reach_the_first_iteration(tmp_path, run_tool):
    command = [
        'tests/robustness/time_start_up.py',
        tmp_path,
        '--images',
        48,
        '--boxes',
        480,
        '--runs',
        1,
    ]
    result = run_tool(*command)
    assert result.returncode == 0, result.stdout
    memory = {
        name: float(row.split('|')[-2])
        for name, row in re.findall(r'\| (mmevit|mmdet) (\|.*)', result.stdout)
    }
    # At this size the two differ by what mmevit imports.
    assert memory['mmevit'] < 1.2 * memory['mmdet']
