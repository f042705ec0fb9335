"""The console script ``mmevit COMMAND ...``."""

import argparse
import sys
from importlib import import_module

# The module of each command.
COMMANDS = {
    'train': 'train',
    'test': 'test',
    'infer': 'infer',
    'export': 'export',
    'finetune': 'finetune',
    'benchmark': 'benchmark',
    'check-dataset': 'check_dataset',
    'convert': 'convert_checkpoint',
    'self-check': 'self_check',
}


def main() -> None:
    """Run a command with the arguments that follow its name."""
    parser = argparse.ArgumentParser(prog='mmevit', description='EfficientViT for OpenMMLab.')
    parser.add_argument('command', choices=COMMANDS, help='see mmevit COMMAND --help')
    command = parser.parse_args(sys.argv[1:2]).command
    # argparse shows this name in usage messages.
    sys.argv = [f'mmevit {command}', *sys.argv[2:]]
    import_module(f'mmevit.cli.{COMMANDS[command]}').main()
