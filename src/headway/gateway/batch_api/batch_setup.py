"""The Batch API of one gateway: its parts put together, started and stopped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from headway.gateway.batch_api.batch_metrics import batch_metrics
from headway.gateway.batch_api.batch_routes import BatchRoutes
from headway.gateway.batch_api.batch_store import BatchStore, check_batch_folder
from headway.gateway.batch_api.disk_space import DiskSpace
from headway.gateway.batch_api.open_batches import OpenBatches
from headway.gateway.batch_api.sent_lines import Submit
from headway.gateway.batch_api.store_thread import StoreThread
from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.settings import BatchSettings
from headway.gateway.wire.messages import Response

_LOOK_SECONDS = 1.0
_FORGET_SECONDS = 60.0
_FILE_THREADS = 2
log = logging.getLogger("headway.gateway")


class BatchApi:
    """One per process, and a `RequestObserver` too: `connect` it and `start` it; at the end `leave`, then `stop`."""

    def __init__(self, settings: BatchSettings) -> None:
        """Raises ValueError, one sentence, if nothing can be kept in the folder."""
        assert settings.folder is not None, "without a folder there is no Batch API"
        check_batch_folder(settings.folder)
        self.settings = settings
        self.store = BatchStore(Path(settings.folder))
        self._thread = StoreThread()
        self._file_threads = ThreadPoolExecutor(_FILE_THREADS, "batch-files")
        self.space = DiskSpace(settings, self.store, self._thread)
        self._keeping: asyncio.Task[None] | None = None

    def connect(self, dispatcher: Dispatcher, submit: Submit, refused: Callable[[Response, str], None]) -> None:
        """The gateway that it is part of: `submit` takes requests, `refused` counts errors that are answered here."""
        self.dispatcher = dispatcher
        self.open_batches = OpenBatches(
            *(self.settings, dispatcher, submit, self.store, self._thread, self.space.may_grow)
        )
        self.routes = BatchRoutes(
            *(self.settings, self.store, self._thread, self._file_threads, self.space, self.open_batches, refused)
        )

    async def start(self) -> None:
        """Open the folder, and go on with the batches in it. Raises ValueError, one sentence, if it cannot be used."""
        await self._thread.call(self.store.open)
        await self.space.look()
        await self.open_batches.start()
        self._keeping = asyncio.create_task(self._keep_house())

    async def _keep_house(self) -> None:
        forgotten_at = 0.0
        while True:
            try:
                await self.space.look()
                if time.monotonic() - forgotten_at >= _FORGET_SECONDS:
                    keep_seconds = int(self.settings.keep_seconds)
                    if not await self._thread.call(self.store.forget_old, int(time.time()), keep_seconds):
                        forgotten_at = time.monotonic()
            except Exception as error:
                self.dispatcher.errors.contained("batches", error)
            await asyncio.sleep(_LOOK_SECONDS)

    def leave(self) -> None:
        """The gateway drains."""
        if self._keeping is not None:
            self.open_batches.leave_queue()

    async def stop(self) -> None:
        """Write what is left, and give the folder back."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await self.open_batches.stop()
        await self._thread.call(self.store.close)
        await self._thread.close()
        await asyncio.to_thread(self._file_threads.shutdown)

    def metrics(self) -> Iterator[str]:
        """In Prometheus's text format."""
        return batch_metrics(self.open_batches, self.space, self.settings.bytes_max)

    # As an observer of requests

    def dispatched(self, request: GatewayRequest, now: float) -> None:
        """A request left its queue for a replica."""
        self.open_batches.sent.dispatched(request)

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """A request ended."""
        self.open_batches.sent.request_ended(request)
