"""Processes that fork from the tests', and so begin at once; others import for seconds what they need."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torchmetrics.functional.classification

import tta.methods
import tta.runner

IMPORTED = (torchmetrics.functional.classification, tta.methods, tta.runner)
"""What a run imports when it begins; here it is there already."""


def forked(main: Callable[[], Any], *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a process that calls a function, in the place of a program.

    Args:
        main: the function; ``sys.exit`` in it means what it means in a program.
        arguments: ``sys.argv`` there.
        options: of ``Popen``; variables in ``env`` are added to those that are there.
    """
    environment, before = dict(options.pop("env", {})), set(os.listdir("/dev/fd"))

    def instead() -> None:
        code: Any = 1
        try:
            for descriptor in set(os.listdir("/dev/fd")) - before - {"0", "1", "2"}:
                with contextlib.suppress(OSError):
                    os.close(int(descriptor))  # one of them tells Popen that the program has begun
            os.environ.update(environment)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            warnings.resetwarnings()  # pytest makes errors of them
            sys.argv = list(arguments)
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:  # whatever ends a program is told, and ends nothing of the tests'
            traceback.print_exc()
        finally:
            if isinstance(code, str):
                print(code, file=sys.stderr)
            sys.stdout.flush()
            os._exit(code if isinstance(code, int) else code is not None)

    return subprocess.Popen(["true"], preexec_fn=instead, text=True, **options)
