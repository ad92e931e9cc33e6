"""The API server of Kubernetes: how it is reached and asked, by the package kubernetes-asyncio (extra `kubernetes`).

In a pod by its service account, whose token is read again each minute; elsewhere by a kubeconfig. The package knows
certificates, tokens and log-in commands. Objects are read by their callers, which need a few fields of each.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

_SECONDS = 15.0  # of one question
_ANSWER_BYTES_MAX = 32 << 20
_LINE_BYTES_MAX = 4 << 20  # of one event; etcd holds objects of 1.5 MiB at most
_IN_CLUSTER = "KUBERNETES_SERVICE_HOST"
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Folder with the token and the certificate of the authority, which each pod has."""


class ApiServerFault(Exception):
    """The API server did not answer, or not with what was asked for; one sentence.

    Attributes:
        status: of its answer; 0 where there is none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _Status(msgspec.Struct):
    message: str = ""


class KubernetesApi:
    """One API server, for one task. `kubeconfig` is a path; None for the service account, else the usual kubeconfig."""

    def __init__(self, kubeconfig: str | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._client: Any = None

    async def ask(self, method: str, path: str, query: Mapping[str, str] | None = None, body: object = None) -> bytes:
        """The body of an answer with a status of 2xx.

        Args:
            method: GET, POST, PUT, PATCH or DELETE.
            path: below the address of the server, for example "/api/v1/namespaces/default/pods".
            query: parameters.
            body: written as JSON; None for none.

        Raises:
            ApiServerFault: there is no such answer within 15 s.
        """
        response = await self._response(method, path, query or {}, body, _SECONDS)
        try:
            async with asyncio.timeout(_SECONDS):
                content = bytes(await response.content.read(_ANSWER_BYTES_MAX + 1))
                while not response.content.at_eof() and len(content) <= _ANSWER_BYTES_MAX:
                    content += await response.content.read(_ANSWER_BYTES_MAX + 1 - len(content))
        except (OSError, self._errors()) as error:
            raise ApiServerFault(f"the API server broke off its answer: {_said(error)}") from None
        finally:
            response.release()
        if len(content) > _ANSWER_BYTES_MAX:
            raise ApiServerFault(f"the answer of the API server is longer than {_ANSWER_BYTES_MAX >> 20} MiB")
        if not 200 <= response.status < 300:
            raise await self._refusal(response.status, path, content)
        return content

    async def events(self, path: str, query: Mapping[str, str], silent_seconds: float) -> AsyncIterator[bytes]:
        """The lines of a watch, until the server ends it. Raises ApiServerFault, also after so long a silence."""
        response = await self._response("GET", path, query, None, None)
        try:
            if response.status != 200:
                async with asyncio.timeout(_SECONDS):
                    content = await response.content.read(_LINE_BYTES_MAX)
                raise await self._refusal(response.status, path, content)
            rest = b""
            while True:
                async with asyncio.timeout(silent_seconds):
                    piece = await response.content.readany()
                if not piece:
                    return
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    yield line
                if len(rest) > _LINE_BYTES_MAX:
                    raise ApiServerFault(f"an event of the API server is longer than {_LINE_BYTES_MAX >> 20} MiB")
        except (OSError, self._errors()) as error:
            raise ApiServerFault(f"the API server broke off a watch: {_said(error)}") from None
        finally:
            response.close()

    async def close(self) -> None:
        """Close its connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _response(
        self, method: str, path: str, query: Mapping[str, str], body: object, seconds: float | None
    ) -> Any:
        client = await self._connected()
        try:
            async with asyncio.timeout(_SECONDS):
                return await client.call_api(
                    path,
                    method,
                    query_params=list(query.items()),
                    header_params={"Accept": "application/json"},
                    body=body,
                    auth_settings=["BearerToken"],
                    _preload_content=False,
                    _request_timeout=seconds,
                )
        except (OSError, ValueError, self._errors()) as error:
            raise ApiServerFault(f"the API server cannot be reached: {_said(error)}") from None

    async def _connected(self) -> Any:
        if self._client is None:
            # In a thread, because to import it takes seconds on a busy machine.
            await asyncio.to_thread(import_module, "kubernetes_asyncio.client.api_client")
            client: Any = import_module("kubernetes_asyncio.client")
            config: Any = await asyncio.to_thread(import_module, "kubernetes_asyncio.config")
            configuration = client.Configuration()
            try:
                if self._kubeconfig is None and os.environ.get(_IN_CLUSTER):
                    config.load_incluster_config(
                        client_configuration=configuration,
                        token_filename=f"{SERVICE_ACCOUNT}/token",
                        cert_filename=f"{SERVICE_ACCOUNT}/ca.crt",
                    )
                else:
                    self._look_for_kubeconfig()
                    await config.load_kube_config(self._kubeconfig, client_configuration=configuration)
                self._client = client.ApiClient(configuration)
            except Exception as error:  # of files, YAML, certificates and log-in commands: many kinds
                where = self._kubeconfig or ("the service account" if os.environ.get(_IN_CLUSTER) else "the kubeconfig")
                raise ApiServerFault(f"{where} tells no way to the API server: {_said(error)}") from None
        return self._client

    def _look_for_kubeconfig(self) -> None:
        """Raises ValueError if there is none: the package says so in its own words, and at each try."""
        names = (self._kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config").split(os.pathsep)
        if not any(Path(name).expanduser().is_file() for name in names):
            raise ValueError(
                f"there is no file {' or '.join(names)}, and this process runs in no cluster; set KUBECONFIG, or "
                "`kubeconfig` of the source"
            )

    async def _refusal(self, status: int, path: str, content: bytes) -> ApiServerFault:
        if status == 401:  # what was logged in with is no more: read it again
            await self.close()
        try:
            why = msgspec.json.decode(content, type=_Status).message
        except (msgspec.DecodeError, UnicodeDecodeError):
            why = ""
        return ApiServerFault(
            f"the API server answered {path} with status {status}: {why[:300] or 'no reason'}", status
        )

    def _errors(self) -> type[Exception]:
        import aiohttp  # noqa: PLC0415 - comes with the extra

        errors: type[Exception] = aiohttp.ClientError
        return errors


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()) or ("no answer in time" if isinstance(error, TimeoutError) else repr(error))
