"""Compare networks of equal speed with 0 to 60 % attention layers (Figure 3)."""

from mmevit.cli.analysis.attention_ratio import main

if __name__ == '__main__':
    main()
