"""How commands end."""

import weakref

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mmevit.cli.errors import report_errors


def test_threads_of_gloo_end_before_python_exits(tmp_path):
    distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1
    )
    group = weakref.ref(distributed.group.WORLD)
    with report_errors():
        model = DistributedDataParallel(nn.Linear(2, 2))
        model.hooks = [model]  # a cycle, as between a runner and its hooks
        del model
    assert group() is None
    assert not distributed.is_initialized()
