"""Space on the disk for files and results: what is used, and what is refused beyond a bound."""

from __future__ import annotations

from collections.abc import Mapping

from headway.gateway.batch_api.batch_store import BatchStore
from headway.gateway.batch_api.store_thread import StoreThread
from headway.gateway.batch_api.upload import no_space
from headway.gateway.openai.error_responses import Reason, error_response
from headway.gateway.settings import BatchSettings
from headway.gateway.wire.messages import Response


class DiskSpace:
    """What was used at the latest `look`, which is cheap enough for each change and for once a second."""

    def __init__(self, settings: BatchSettings, store: BatchStore, thread: StoreThread) -> None:
        self._settings = settings
        self._store = store
        self._thread = thread
        self._of_owner: Mapping[str, int] = {}
        self.bytes = 0
        self.free_bytes = 0

    async def look(self) -> None:
        """See what is used now."""
        self._of_owner, self.free_bytes = await self._thread.call(self._read)
        self.bytes = sum(self._of_owner.values())

    def _read(self) -> tuple[Mapping[str, int], int]:
        return self._store.space(), self._store.free_bytes()

    def refusal(self, owner: str, more_bytes: int, of_others: int = 0) -> Response | None:
        """Why so many bytes more may not be stored for a tenant, beside so many `of_others`; None if they may."""
        settings, own = self._settings, self._settings.tenant_bytes_max
        if own is not None and self._of_owner.get(owner, 0) + more_bytes > own:
            message = f"the files and results would take more than {own} bytes (`batches.tenant_bytes_max`)"
            return error_response(413, f"{message}; delete some", Reason.STORAGE_FULL)
        more_bytes += of_others
        if self.bytes + more_bytes > settings.bytes_max:
            message = f"the files and results of all would take more than {settings.bytes_max} bytes"
            return no_space(f"{message} (`batches.bytes_max`); delete some, or come back later")
        if self.free_bytes - more_bytes < settings.free_bytes_min:
            return no_space("the disk has too little free space (`batches.free_bytes_min`); delete some files")
        return None

    def may_grow(self, owner: str) -> bool:
        """Whether there is room for more results of a tenant."""
        return self.refusal(owner, 0) is None
