"""Show where the time of networks goes: what memory bounds, and what computation (Figure 2)."""

from mmevit.cli.analysis.profile_runtime import main

if __name__ == '__main__':
    main()
