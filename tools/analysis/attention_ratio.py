"""Compare networks of 0 to 60 % attention layers that are equally fast (Figure 3, speed)."""

from mmevit.cli.analysis.attention_ratio import main

if __name__ == '__main__':
    main()
