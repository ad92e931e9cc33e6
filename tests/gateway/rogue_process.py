"""A scripted replica as a process of its own, to be killed; prints its port.

python -m gateway.rogue_process PORT        (0: any; in the folder of the tests)
"""

from __future__ import annotations

import asyncio
import sys

from .scripted_replica import ScriptedReplica, echoes


async def main(port: int) -> None:
    replica = ScriptedReplica(echoes(gap=0.05))
    replica.port = port
    await replica.start()
    print(replica.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
