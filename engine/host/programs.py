"""Commands that run modules as programs in processes of their own."""

from __future__ import annotations

import sys


def module_command(module: str) -> list[str]:
    """Return a command that runs ``module`` as a program with this process's search path.

    (``-m`` would search the current folder first and run whatever is called ``engine`` there.)
    """
    boot = f"import runpy, sys; sys.path[:] = {sys.path!r}; runpy.run_module({module!r}, run_name='__main__')"
    return [sys.executable, "-c", boot]
