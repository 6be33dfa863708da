"""A program killed at a step of our choosing, by the kernel and without warning."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Final

CHANGES: Final = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink")


def killed_before(step: int, action: Callable[[], object]) -> bool:
    """Run `action` in a process of its own and kill it before it changes the disk the step-th time.

    A change is a file opened for writing, renamed or removed, or a folder made or removed. Returns
    whether it was killed: False if it ended before that.
    """
    child = os.fork()
    if child == 0:
        _die_before(step)
        try:
            action()
        except BaseException:  # noqa: BLE001 - the child must not go on as a second test run
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def _die_before(step: int) -> None:
    left = step

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in CHANGES or (event == "open" and _writes(arguments[2])):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def _writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
