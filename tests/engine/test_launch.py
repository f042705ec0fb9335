"""Ranks and process groups of distributed runs."""

import argparse
from datetime import timedelta

import pytest
from mmengine.config import Config
from torch import distributed

from mmevit.checks import check_config
from mmevit.cli.arguments import load_config
from mmevit.engine.cpu_processes import init_cpu_process_group
from mmevit.utils.errors import ConfigError


@pytest.mark.parametrize(
    ('launcher', 'variable'),
    [
        ('slurm', 'SLURM_LOCALID'),
        ('mpi', 'OMPI_COMM_WORLD_LOCAL_RANK'),
        ('pytorch', 'LOCAL_RANK'),
    ],
)
def test_one_process_of_each_node_parses_the_annotations(launcher, variable, tmp_path, monkeypatch):
    (tmp_path / 'instances.json').write_text('whoever parses this fails')
    dataset = dict(type='CocoDataset', ann_file='instances.json', data_root=str(tmp_path))
    cfg = dict(model=dict(type='RetinaNet'), train_dataloader=dict(dataset=dataset))
    Config(dict(cfg, default_scope='mmdet')).dump(tmp_path / 'config.py')
    args = argparse.Namespace(
        config=tmp_path / 'config.py',
        cfg_options=None,
        launcher=launcher,
        work_dir=str(tmp_path),
        local_rank=0,
        no_pin_memory=False,
    )
    parsed = []
    for node in range(2):
        for local_rank in range(2):
            monkeypatch.delenv('LOCAL_RANK', raising=False)
            monkeypatch.setenv('SLURM_PROCID', str(2 * node + local_rank))
            monkeypatch.setenv(variable, str(local_rank))
            cfg = load_config(args, splits=['train'], needs=())
            cfg.launcher = 'none'  # this machine has no GPU, which Slurm's processes need
            try:
                check_config(cfg, splits=['train'])
            except ConfigError as error:
                assert 'instances.json' in str(error)
                parsed.append((node, local_rank))
    assert parsed == [(0, 0), (1, 0)]


@pytest.fixture
def joined(monkeypatch):
    """The arguments of init_process_group."""
    calls = []
    monkeypatch.setattr(distributed, 'init_process_group', lambda **kwargs: calls.append(kwargs))
    return calls


def test_timeout_of_the_config_is_used_on_cpus(joined):
    cfg = Config(dict(env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=90))))
    init_cpu_process_group(cfg)
    assert joined == [dict(backend='gloo', timeout=timedelta(seconds=90))]
    init_cpu_process_group(Config(dict(model=dict())))
    assert joined[1:] == [dict(backend='gloo')]


def test_invalid_timeout_raises_config_error(joined):
    cfg = Config(dict(env_cfg=dict(dist_cfg=dict(timeout='90 s'))))
    with pytest.raises(ConfigError, match="timeout is '90 s'. Give a number of seconds"):
        init_cpu_process_group(cfg)
