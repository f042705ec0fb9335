"""Precompile PyTorch's headers, and print the compiler flag that uses them.

    CFLAGS=$(python tools/dev/precompile_headers.py FOLDER) pip install --no-build-isolation MMCV

Reading them takes most of the time that mmcv's operators compile. Where the precompiled header
does not fit, GCC reads the headers themselves. The flags are those of setuptools and PyTorch.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools.command.build_ext import customize_compiler, new_compiler
from torch.utils.cpp_extension import include_paths


def main(folder: Path) -> None:
    """Write the header and its precompiled form, about 400 MB."""
    compiler = shlex.split(os.environ.get('CXX') or 'c++')
    if 'clang' in subprocess.check_output([*compiler, '--version'], text=True):
        return  # It rejects precompiled headers of other flags.
    folder.mkdir(parents=True, exist_ok=True)
    header = folder.resolve() / 'torch_types.h'
    header.write_text('#include <torch/types.h>\n')
    build = new_compiler()
    customize_compiler(build)
    flags = [*build.compiler_so[1:], *(f'-I{path}' for path in include_paths()), '-std=c++17']
    precompiled = f'{header}.gch'
    subprocess.run([*compiler, *flags, '-xc++-header', header, '-o', precompiled], check=True)
    print(f'-include {header}')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
