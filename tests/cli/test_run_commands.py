import runpy
import sys

PAGE = """
# A page

```bash
MADE=made.txt; cd {folder}   # 3 seconds: the shell stays
echo one \\
    two > $MADE

# Nothing to run.
```

```python
open('made.txt', 'w')
```

```bash
cat $MADE  # in 2 minutes
{last}
echo never
```
"""


def test_commands_of_a_page_run_in_one_shell_and_are_timed(run_tool, tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(PAGE.format(folder=tmp_path, last='true'))
    result = run_tool('tools/dev/run_commands.py', page)
    assert result.returncode == 0
    assert '\none two\n' in result.stdout and '\nnever\n' in result.stdout
    (table_line,) = [line for line in result.stdout.splitlines() if '120' in line]
    assert 'cat $MADE' in table_line


def test_the_first_failure_ends_them_and_is_named(run_tool, tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(PAGE.format(folder=tmp_path, last='false'))
    result = run_tool('tools/dev/run_commands.py', page)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == 'error: this command failed with status 1: false'
    assert '\nnever\n' not in result.stdout


def test_what_is_said_to_take_a_time_is_read(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['run_commands.py'])
    tool = runpy.run_path('tools/dev/run_commands.py')
    assert tool['stated_seconds']('make demo  # 6 minutes, after 10 for the environment') == '360'
    assert tool['stated_seconds']('ls  # the files') == ''
