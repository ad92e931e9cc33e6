"""The twin's process: a look a line on standard input, an answer a line on standard output, until the input ends.

It is niced, and stays within the memory that it takes: `twin.look_process` watches both from outside.
"""

from __future__ import annotations

import json
import os
import sys
import time

from headway.bench.twin.looking import answer_of
from headway.twin.look_messages import TwinLook

_NICEST = 19


def main() -> None:
    """Answer until the input ends."""
    os.nice(_NICEST)
    for line in sys.stdin.buffer:
        try:
            answer = answer_of(TwinLook.from_line(line), time.process_time).to_line()
        except MemoryError:
            raise
        except Exception as error:
            answer = json.dumps({"fault": f"the look failed: {error!r}"}).encode() + b"\n"
        sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
