"""A scripted replica as a process of its own, to be killed; prints its port.

python -m tests.support.replica_process PORT        (0: any; in the root of the repository)
"""

from __future__ import annotations

import asyncio
import sys

from tests.support.scripted_replica import ScriptedReplica, echoes


async def main(port: int) -> None:
    replica = ScriptedReplica(echoes(gap=0.05))
    replica.port = port
    await replica.start()
    print(replica.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
