"""A program that ends with the process that started it, however that process ends.

Run as ``python -I -S child.py PARENT PROGRAM ARGUMENT...``, with the process number of the parent, this is a
go-between: it starts the program, writes its process number to standard output, and ends when the program does. To have
the kernel end the program with its parent would not do: it watches the parent's thread, and threads start servers too.
"""

import ctypes
import os
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1
_SECONDS_BETWEEN_LOOKS = 0.1


def main(parent: int, command: list[str]) -> int:
    """Run a program until it or the parent of this process ends."""
    # Whoever wants to end the program has its number; this process is needed until the program has ended.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    here = os.getpid()

    def end_with_go_between() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
            if os.getppid() != here:
                os._exit(1)

    # What the parent had this process inherit is for the program, such as the lock of a folder.
    program = subprocess.Popen(command, stdout=sys.stderr, close_fds=False, preexec_fn=end_with_go_between)
    os.write(1, b"%d\n" % program.pid)
    os.close(1)
    while True:
        try:
            return abs(program.wait(_SECONDS_BETWEEN_LOOKS))
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                program.kill()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
