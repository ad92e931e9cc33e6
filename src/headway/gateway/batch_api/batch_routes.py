"""Routes of the Batch API: `/v1/files` and `/v1/batches`, of one tenant each time.

Law: a tenant sees its own files and batches only; those of others are as if they were not there.
"""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from headway.gateway.batch_api.awaited_answer import AwaitedAnswer
from headway.gateway.batch_api.batch_objects import batch_object, file_object, page
from headway.gateway.batch_api.batch_requests import RequestMistake, wanted_batch, wanted_keeping, wanted_page
from headway.gateway.batch_api.batch_rows import ApiBatch, BatchStatus, StoredFile
from headway.gateway.batch_api.batch_store import BatchStore
from headway.gateway.batch_api.disk_space import DiskSpace
from headway.gateway.batch_api.open_batches import OpenBatches
from headway.gateway.batch_api.store_thread import StoreThread
from headway.gateway.batch_api.upload import FORM_BYTES_MAX, Upload, no_space
from headway.gateway.openai.error_responses import Reason, error_response, not_found
from headway.gateway.openai.form_fields import delimiter_of
from headway.gateway.openai.model_name import content_coding
from headway.gateway.settings import BatchSettings
from headway.gateway.wire.client_connection import ClientConnection
from headway.gateway.wire.messages import Headers, HttpRequest, Response

_PATH = re.compile(r"/v1/(files|batches)(?:/([A-Za-z0-9_-]{1,100})(?:/(content|cancel))?)?")
_FILES_SHOWN, _BATCHES_SHOWN, _BATCHES_SHOWN_MAX = 10_000, 20, 100
_CONTENT_HEADERS: Headers = [
    (b"content-type", b"application/octet-stream"),
    (b"content-disposition", b"attachment"),
    (b"x-content-type-options", b"nosniff"),  # what a client uploaded is no page of this site
]
log = logging.getLogger("headway.gateway")


def is_of_batch_api(path: str) -> bool:
    """Whether a path is `/v1/files` or `/v1/batches`, or below one of them."""
    return path.startswith(("/v1/files", "/v1/batches")) and path.split("/")[2] in ("files", "batches")


class BatchRoutes:
    """One per process. `file_threads` read forms and write files."""

    def __init__(
        self,
        settings: BatchSettings,
        store: BatchStore,
        thread: StoreThread,
        file_threads: ThreadPoolExecutor,
        space: DiskSpace,
        open_batches: OpenBatches,
        refused: Callable[[Response, str], None],
    ) -> None:
        """`refused` counts an answer that is an error, with its client's address."""
        self._settings = settings
        self._store = store
        self._thread = thread
        self._file_threads = file_threads
        self._space = space
        self._open_batches = open_batches
        self._refused = refused
        self._uploads: set[Upload] = set()

    # Uploads, which are read before they are answered

    def refuse_head(self, request: HttpRequest) -> Response | None:
        """Why a request gets no further, whatever its body says. Of an upload, what takes the body is set."""
        if request.method != b"POST" or request.path != "/v1/files":
            return None
        delimiter = delimiter_of(request.named.get(b"content-type", b""))
        if delimiter is None:
            message = "the body must be a form (multipart/form-data) with the parts `purpose` and `file`"
            return error_response(415, message, Reason.MALFORMED)
        if content_coding(request):
            return error_response(415, "the body is compressed (content-encoding); send it as it is", Reason.MALFORMED)
        settings, length = self._settings, int(request.named.get(b"content-length", b"0"))
        if length > settings.file_bytes_max + FORM_BYTES_MAX:
            message = f"the file is longer than {settings.file_bytes_max} bytes (`batches.file_bytes_max`); split it"
            return error_response(413, message, Reason.MALFORMED, param="file")
        of_all, own = list(self._uploads), [upload for upload in self._uploads if upload.owner == request.owner]
        free = settings.uploads_max - len(of_all)
        if free <= 0 or (request.owner and len(own) >= free):  # so that no tenant holds the last places
            limit = f"the limit `batches.uploads_max` of {settings.uploads_max}"
            message = f"{len(of_all)} files are being uploaded, {len(own)} of them with this key; {limit} is shared"
            return error_response(429, message, Reason.OVERLOADED, retry_seconds=1.0)
        own_bytes = length + sum(upload.bytes_to_come for upload in own)
        of_others = sum(upload.bytes_to_come for upload in of_all) - sum(upload.bytes_to_come for upload in own)
        refusal = self._space.refusal(request.owner, own_bytes, of_others)
        if refusal is None:
            request.sink = self._upload(delimiter[2:], request.owner, length)
        return refusal

    def _upload(self, boundary: bytes, owner: str, announced: int) -> Upload:
        settings = self._settings
        upload = Upload(
            *(boundary, self._store.uploads, settings.file_bytes_max, settings.upload_seconds),
            *(self._file_threads, self._uploads.discard, owner, announced),
        )
        self._uploads.add(upload)
        return upload

    # Answers

    def shown(self) -> dict[str, int]:
        """What the live page shows: batches that have not ended, and their requests."""
        batches = self._open_batches
        return {"open": batches.number, "waiting": batches.lines_waiting, "sent": batches.lines_sent}

    def answer(
        self, request: HttpRequest, client: ClientConnection, broke: Callable[[Exception], None]
    ) -> AwaitedAnswer:
        """Answer a request for a path of this API; `broke` hears of what raises."""

        async def work(answer: AwaitedAnswer) -> None:
            response = await self._response(request, answer)
            if response is not None:
                if response.status >= 400:
                    self._refused(response, client.address)
                answer.respond(response)

        return AwaitedAnswer(client, work, broke)

    async def _response(self, request: HttpRequest, answer: AwaitedAnswer) -> Response | None:
        """The response; None where it was sent piece by piece."""
        match = _PATH.fullmatch(request.path.rstrip("/"))
        if match is None:
            return not_found(f"unknown path {request.path[:100]}; files are under /v1/files, batches under /v1/batches")
        kind, name, rest = match.groups()
        try:
            if (kind, rest, request.method) == ("files", "content", b"GET"):
                return await self._content(request.owner, name, answer)
            act = self._act(kind, name, rest, request.method)
            if act is None:
                return error_response(
                    405, f"{request.method.decode('latin-1')[:20]} is not for {kind}", Reason.MALFORMED
                )
            return await act(request, name or "")
        except RequestMistake as error:
            return error_response(400, str(error), Reason.MALFORMED, param=error.param)
        except (OSError, sqlite3.Error) as error:
            log.error("the folder of batches cannot be read or written: %s", error)
            return no_space("the gateway cannot read or write its files now; its log says why")

    def _act(
        self, kind: str, name: str | None, rest: str | None, method: bytes
    ) -> Callable[[HttpRequest, str], Awaitable[Response]] | None:
        of_all = {
            ("files", b"POST"): self._create_file,
            ("files", b"GET"): self._list_files,
            ("batches", b"POST"): self._create_batch,
            ("batches", b"GET"): self._list_batches,
        }
        of_one = {
            ("files", None, b"GET"): self._show_file,
            ("files", None, b"DELETE"): self._delete_file,
            ("batches", None, b"GET"): self._show_batch,
            ("batches", "cancel", b"POST"): self._cancel_batch,
        }
        return of_all.get((kind, method)) if name is None else of_one.get((kind, rest, method))

    # Files

    async def _create_file(self, request: HttpRequest, _: str) -> Response:
        upload = request.sink
        if not isinstance(upload, Upload):
            return error_response(400, "the upload was not read; send it again", Reason.MALFORMED)
        is_kept = False
        try:
            await upload.whole()
            if upload.fault is not None:
                return upload.fault
            refusal = self._space.refusal(request.owner, upload.bytes)
            if refusal is not None:
                return refusal
            file = await self._keep(upload, request.owner)
            if isinstance(file, StoredFile):
                is_kept = True
                return _json(file_object(file))
            return file
        finally:
            await upload.close(is_kept=is_kept)

    async def _keep(self, upload: Upload, owner: str) -> StoredFile | Response:
        form, most = upload.form, self._settings.tenant_files_max
        keep_seconds = wanted_keeping(form.fields) or int(self._settings.keep_seconds)
        if await self._thread.call(self._store.count_files, owner) >= most:
            message = f"there are {most} files, the limit `batches.tenant_files_max`; delete some"
            return error_response(400, message, Reason.MALFORMED)
        now = int(time.time())
        file = await self._thread.call(
            self._store.add_file, form.path, owner, "batch", form.name or "file", now, now + keep_seconds
        )
        await self._space.look()
        return file

    async def _list_files(self, request: HttpRequest, _: str) -> Response:
        wanted = wanted_page(request.target, _FILES_SHOWN, _FILES_SHOWN, of_files=True)

        def find() -> bytes | None:
            found = self._store.files(
                *(request.owner, wanted.purpose, wanted.after, wanted.limit + 1), newest_first=wanted.newest_first
            )
            return None if found is None else page([file_object(file) for file in found], wanted.limit)

        body = await self._thread.call(find)
        return _no_file(wanted.after or "", "after") if body is None else Response(200, body)

    async def _show_file(self, request: HttpRequest, file_id: str) -> Response:
        file = await self._thread.call(self._store.file, file_id, request.owner)
        return _no_file(file_id) if file is None else _json(file_object(file))

    async def _delete_file(self, request: HttpRequest, file_id: str) -> Response:
        file = await self._thread.call(self._store.file, file_id, request.owner)
        if file is None:
            return _no_file(file_id)
        user = await self._thread.call(self._store.delete_file, file_id)
        if user is not None:
            message = f"the batch {user} still reads this file; cancel it first"
            return error_response(409, message, Reason.MALFORMED, param="id")
        await self._space.look()
        return _json({"id": file_id, "object": "file", "deleted": True})

    async def _content(self, owner: str, file_id: str, answer: AwaitedAnswer) -> Response | None:
        file = await self._thread.call(self._store.file, file_id, owner)
        if file is None:
            return _no_file(file_id)
        try:
            content = await self._thread.call(self._store.path_of(file_id).open, "rb")
        except FileNotFoundError:
            return _no_file(file_id)
        try:
            await answer.send(content, file.bytes, _CONTENT_HEADERS)
        finally:
            content.close()
        return None

    # Batches

    async def _create_batch(self, request: HttpRequest, _: str) -> Response:
        wanted, owner, most = wanted_batch(request.body), request.owner, self._settings.tenant_open_max
        now = int(time.time())
        columns: dict[str, object] = {
            "owner": owner,
            "endpoint": wanted.endpoint,
            "input_id": wanted.input_id,
            "window": wanted.window,
            "metadata": wanted.metadata,
            "results_seconds": wanted.results_seconds,
            "created_at": now,
            "expires_at": now + wanted.window_seconds,
        }

        def make() -> ApiBatch | Response:
            file = self._store.file(wanted.input_id, owner)
            if file is None:
                return _no_file(wanted.input_id, "input_file_id")
            if file.purpose != "batch":
                message = f"the file {file.id} is of purpose {file.purpose!r}; a batch reads one of purpose 'batch'"
                return error_response(400, message, Reason.MALFORMED, param="input_file_id")
            if len(self._store.open_batches(owner)) >= most:
                message = f"{most} batches have not ended, the limit `batches.tenant_open_max`; wait for one"
                return error_response(400, message, Reason.MALFORMED)
            return self._store.add_batch(columns)

        batch = await self._thread.call(make)
        if isinstance(batch, Response):
            return batch
        await self._open_batches.add(batch)
        return _json(batch_object(batch))

    async def _list_batches(self, request: HttpRequest, _: str) -> Response:
        wanted = wanted_page(request.target, _BATCHES_SHOWN, _BATCHES_SHOWN_MAX, of_files=False)
        found = await self._thread.call(self._store.batches, request.owner, wanted.after, wanted.limit + 1)
        if found is None:
            return _no_batch(wanted.after or "", "after")
        return Response(200, page([batch_object(batch) for batch in found], wanted.limit))

    async def _show_batch(self, request: HttpRequest, batch_id: str) -> Response:
        batch = await self._thread.call(self._store.batch, batch_id, request.owner)
        return _no_batch(batch_id) if batch is None else _json(batch_object(batch))

    async def _cancel_batch(self, request: HttpRequest, batch_id: str) -> Response:
        batch = await self._thread.call(self._store.batch, batch_id, request.owner)
        if batch is None:
            return _no_batch(batch_id)
        if batch.is_open:
            batch = await self._open_batches.cancel(batch)
        if batch.status in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):
            return _json(batch_object(batch))
        message = f"Cannot cancel a batch with status '{batch.status}'."
        return error_response(409, message, Reason.MALFORMED)


def _json(content: dict[str, object]) -> Response:
    return Response(200, json.dumps(content).encode())


def _no_file(file_id: str, param: str = "id") -> Response:
    return not_found(f"No such File object: {file_id[:100]}", param=param)


def _no_batch(batch_id: str, param: str = "id") -> Response:
    return not_found(f"No such Batch object: {batch_id[:100]}", param=param)
