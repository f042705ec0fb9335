"""Profile networks: memory-bound and compute-bound operators (Figure 2)."""

from mmevit.cli.analysis.profile_runtime import main

if __name__ == '__main__':
    main()
