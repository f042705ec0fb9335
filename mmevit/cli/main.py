"""The console script ``mmevit COMMAND ...``."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from mmevit.utils.versions import check_libraries

# The module of each command.
COMMANDS = {
    'train': 'train',
    'test': 'test',
    'infer': 'infer',
    'predict': 'predict',
    'export': 'export',
    'finetune': 'finetune',
    'benchmark': 'benchmark',
    'check-dataset': 'check_dataset',
    'convert-dataset': 'convert_dataset',
    'convert': 'convert_checkpoint',
    'self-check': 'self_check',
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command with the arguments that follow its name."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog='mmevit', description='EfficientViT for OpenMMLab.')
    parser.add_argument('command', choices=COMMANDS, help='see mmevit COMMAND --help')
    command = parser.parse_args(argv[:1]).command
    if command != 'predict':
        try:
            check_libraries()
        except ImportError as error:
            sys.exit(f'error: {error}')
    # argparse shows this name in usage messages.
    sys.argv[0] = f'mmevit {command}'
    import_module(f'mmevit.cli.{COMMANDS[command]}').main(argv[1:])
