"""Compare the ablations of Table 6 and Figure 7 of the paper."""

from mmevit.cli.analysis.ablation import main

if __name__ == '__main__':
    main()
