"""Script for a checkout; the command is in mmevit/cli/analysis/profile_runtime.py."""

from mmevit.cli.analysis.profile_runtime import main

if __name__ == '__main__':
    main()
