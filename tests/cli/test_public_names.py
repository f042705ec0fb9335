"""The names that users have in their scripts: configs, commands and flags."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from mmevit.cli.main import COMMANDS

ARCHS = ('m0', 'm1', 'm2', 'm3', 'm4', 'm5')
DATA = ('in1k', 'cifar10', 'cifar100', 'cars', 'flowers', 'pets')
CONFIGS = {
    *(f'evit_{arch}_{data}' for arch in ARCHS for data in DATA),
    *(f'{detector}_evit_{arch}' for arch in ARCHS for detector in ('retinanet', 'mask-rcnn')),
    'ablation/evit_m4_02-swin-block',
    'ablation/evit_m4_03-two-ffns',
    'ablation/evit_m4_04-three-ffns',
    'ablation/evit_m4_05-plain-attention',
    'ablation/evit_m4_06-no-cascade',
    'ablation/evit_m4_07-equal-qkv',
    'ablation/evit_m4_08-ffn-ratio-4',
    'ablation/evit_m4_09-no-token-mixing',
    'ablation/evit_m4_10-layer-norm',
    'ablation/evit_m4_11-hardswish',
    'ablation/evit_m4_key-04',
    'ablation/evit_m4_key-08',
    'ablation/evit_m4_key-24',
    'ablation/evit_m4_key-32',
    'ablation/evit_m4_value-040',
    'ablation/evit_m4_value-060',
    'ablation/evit_m4_value-080',
    'ablation/evit_m4_value-120',
    'evit_m0_digits',
    'evit_m4_in1k-distill-1000e',
    'evit_m5_finetune',
    'evit_m5_in1k-384',
    'evit_m5_in1k-512',
    'mask-rcnn_evit_m4_digits',
    'retinanet_evit_m4_digits',
    'semantic-fpn_evit_m4',
    'semantic-fpn_evit_m4_digits',
}
# The flags of each command, by its module in mmevit.cli and its file in tools/.
FLAGS = {
    'benchmark': """
        --baseline --batch --channels-last --device --forms --leave-allocator --out --paper
        --plot --rounds --seconds --seed --size --threads
    """,
    'check_dataset': '--cfg-options --out --splits',
    'convert_checkpoint': '--to',
    'convert_dataset': '--format --to --val-fraction',
    'export': """
        --batch-size --calibration-images --cfg-options --dtype --dynamic --out --part --size
        --to --trust-checkpoint
    """,
    'finetune': """
        --amp --batch-size --cfg-options --epochs --format --image-size --launcher --minutes --model
        --no-flip --no-pin-memory --task --trust-checkpoint --val-fraction --weights --work-dir
    """,
    'infer': """
        --batch-size --cfg-options --device --no-save-vis --out-dir --pred-score-thr
        --trust-checkpoint
    """,
    'predict': '--batch-size --no-save-vis --out-dir --pred-score-thr --threads',
    'prepare_digits': '--force --image-size --num-train --num-val --seed',
    'test': """
        --amp --cfg-options --deploy --interval --launcher --no-pin-memory --out --out-item
        --show --show-dir --trust-checkpoint --tta --wait-time --work-dir
    """,
    'train': """
        --amp --auto-scale-lr --cfg-options --launcher --no-persistent-workers --no-pin-memory
        --no-validate --resume --trust-checkpoint --work-dir
    """,
    'analysis.ablation': """
        --batch --cfg-options --device --form --out --plot --rounds --seed --size --threads
        --train-digits --work-dir
    """,
    'analysis.attention_ratio': """
        --attention --batch --device --out --plot --rounds --seed --size --speedup --threads
    """,
    'analysis.channel_importance': """
        --cfg-options --export --images --launcher --macs --no-pin-memory --out --params --plot
        --random --trust-checkpoint --work-dir
    """,
    'analysis.grad_cam': '--cfg-options --out --trust-checkpoint',
    'analysis.head_similarity': '--device --images --out --plot --trust-checkpoint',
    'analysis.profile_runtime': """
        --batch --deploy --device --out --plot --rounds --rows --seed --size --threads
    """,
}
SCRIPTS = ('torchrun.py', 'dist_train.sh', 'dist_test.sh', 'slurm_train.sh')
# The commands of the console script, and their modules.
CONSOLE_SCRIPT = {
    'train': 'train',
    'test': 'test',
    'infer': 'infer',
    'predict': 'predict',
    'export': 'export',
    'finetune': 'finetune',
    'benchmark': 'benchmark',
    'check-dataset': 'check_dataset',
    'convert': 'convert_checkpoint',
    'convert-dataset': 'convert_dataset',
    'self-check': 'self_check',
}


def test_configs_exist():
    missing = {name for name in CONFIGS if not Path(f'configs/{name}.py').is_file()}
    assert not missing


@pytest.mark.parametrize('command', FLAGS)
def test_command_has_its_flags(command, capsys):
    assert Path(f'tools/{command.replace(".", "/")}.py').is_file()
    with pytest.raises(SystemExit) as exit_info:
        import_module(f'mmevit.cli.{command}').main(['--help'])
    assert exit_info.value.code == 0
    options = re.findall(r'^  (?:-\w, )?(--[\w-]+)', capsys.readouterr().out, re.MULTILINE)
    assert set(FLAGS[command].split()) <= set(options)


def test_scripts_exist():
    assert all(Path('tools', name).is_file() for name in SCRIPTS)


def test_console_script_has_its_commands():
    assert CONSOLE_SCRIPT.items() <= COMMANDS.items()
