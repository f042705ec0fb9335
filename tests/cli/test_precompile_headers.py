import sys

import pytest

SETUP = """
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

modules = [CppExtension('operators', ['operators.cpp'])]
setup(name='operators', ext_modules=modules, cmdclass={'build_ext': BuildExtension})
"""


@pytest.mark.slow
def test_extensions_of_pytorch_are_built_with_the_precompiled_headers(run_tool, tmp_path):
    folder, env = tmp_path / 'headers', dict(CFLAGS='-g0')
    result = run_tool('tools/dev/precompile_headers.py', folder, env=env)
    assert result.returncode == 0, result.stdout
    flag = result.stdout.splitlines()[-1]
    (tmp_path / 'setup.py').write_text(SETUP)
    (tmp_path / 'operators.cpp').write_text('#include <torch/types.h>\n')
    env = dict(CFLAGS=f'-g0 {flag} -H')  # GCC lists the headers that it reads.
    build = run_tool(sys.executable, 'setup.py', 'build_ext', cwd=tmp_path, env=env)
    assert build.returncode == 0, build.stdout
    assert f'! {folder}/torch_types.h.gch' in build.stdout
