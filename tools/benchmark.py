"""Script for a checkout; the command is in mmevit/cli/benchmark.py."""

from mmevit.cli.benchmark import main

if __name__ == '__main__':
    main()
