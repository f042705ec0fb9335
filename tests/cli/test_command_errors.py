"""How commands end."""

from torch import distributed

from mmevit.cli.errors import report_errors


def test_process_group_is_destroyed_before_python_exits(tmp_path):
    distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1
    )
    with report_errors():
        pass
    assert not distributed.is_initialized()
