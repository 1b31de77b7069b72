"""One polite HTTP client: time-outs, retries, redirects that leak nothing, and errors in sentences.

Nothing here knows what a registry is. Requests are GETs; answers are streamed.
"""

from __future__ import annotations

import email.utils
import errno
import http.client
import ipaddress
import random
import socket
import ssl
import time
import urllib.parse
from collections.abc import Mapping

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InsecureRequestWarning,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from bootwright import __version__
from bootwright.errors import NetworkError

__all__ = ["HttpClient", "Response", "TransientError", "is_loopback"]

Response = urllib3.HTTPResponse

_TRANSIENT_STATUSES = (408, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
_MAX_DELAY_S = 60.0


class TransientError(NetworkError):
    """A failure that may pass: a reset, a time-out, an overloaded server."""


class HttpClient:
    """Sends requests, again when it is worth it.

    Args:
        verify: certificates must be valid.
        connect_timeout_s: for one attempt to connect.
        read_timeout_s: how long a connection may be silent.
        retries: further attempts after a failure that may pass.
        retry_delay_s: pause before the first of them; it doubles.
    """

    def __init__(
        self, *, verify: bool, connect_timeout_s: float, read_timeout_s: float, retries: int, retry_delay_s: float
    ) -> None:
        self.retries = retries
        self._verify = verify
        self._retry_delay_s = retry_delay_s
        self._read_timeout_s = read_timeout_s
        self._reached: set[str] = set()
        if not verify:
            # The person asked for it; a warning per request helps nobody.
            urllib3.disable_warnings(InsecureRequestWarning)
        self._pools = urllib3.PoolManager(
            num_pools=8,
            maxsize=8,
            timeout=urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s),
            retries=False,
            cert_reqs="CERT_REQUIRED" if verify else "CERT_NONE",
            headers={"User-Agent": f"bootwright/{__version__}"},
        )

    def close(self) -> None:
        """Close every connection."""
        self._pools.clear()

    def probe(self, url: str) -> int:
        """Send one GET and return the status of the answer, whatever it is.

        Raises:
            NetworkError: there was no answer.
        """
        response = self._send(url, {})
        response.close()
        return response.status

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        """Send a GET and return the answer with its body unread; redirects are followed.

        Any status but those that may pass is returned. ``Authorization`` goes to the origin of ``url`` only.

        Raises:
            TransientError: it failed for a reason that may pass, again and again.
            NetworkError: it failed for another reason.
        """
        attempt = 0
        while True:
            delay_s = None
            try:
                response = self._follow(url, dict(headers))
                if response.status not in _TRANSIENT_STATUSES:
                    return response
                delay_s = _parse_retry_after(response.headers.get("Retry-After"))
                raise self._status_error(url, response)
            except TransientError:
                if attempt >= self.retries:
                    raise
            self.pause(attempt, delay_s)
            attempt += 1

    def pause(self, attempt: int, delay_s: float | None = None) -> None:
        """Wait before attempt number ``attempt`` + 1, or for as long as the server asked."""
        if delay_s is None:
            delay_s = self._retry_delay_s * 2**attempt * random.uniform(0.9, 1.1)  # noqa: S311 — jitter
        time.sleep(min(delay_s, _MAX_DELAY_S))

    def read(self, response: Response, size: int, url: str) -> bytes:
        """Read what has come of a body, up to ``size`` bytes; ``b""`` at its end.

        Raises:
            TransientError: the connection broke or fell silent.
        """
        try:
            # One read from the socket at a time: what came before a connection broke is not lost.
            data: bytes = response.read1(size, decode_content=False)
        except (HTTPError, OSError, http.client.HTTPException) as exc:
            raise self._translate(exc, url) from exc
        return data

    def _follow(self, url: str, headers: dict[str, str]) -> Response:
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._send(url, headers)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response
            response.close()
            target = urllib.parse.urljoin(url, location)
            self._check_redirect(url, target)
            if _get_origin(target) != _get_origin(url):
                # Another host must not see our credentials; pre-signed storage URLs even fail with them.
                headers.pop("Authorization", None)
            url = target
        raise NetworkError(f"'{_get_host(url)}' redirects in a circle")

    def _check_redirect(self, url: str, target: str) -> None:
        scheme = urllib.parse.urlsplit(target).scheme
        if scheme not in ("http", "https") or not _get_host(target):
            raise NetworkError(f"'{_get_host(url)}' redirects to '{target[:100]}', which is no web address")
        if self._verify and url.startswith("https:") and scheme == "http":
            raise NetworkError(f"'{_get_host(url)}' redirects from https to plain http, which is not followed")

    def _send(self, url: str, headers: Mapping[str, str]) -> Response:
        try:
            response = self._pools.request(
                "GET",
                url,
                headers={**self._pools.headers, **headers},
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except (HTTPError, OSError, http.client.HTTPException, ValueError) as exc:
            raise self._translate(exc, url) from exc
        self._reached.add(_get_host(url))
        # The pools return only this kind when the content is not preloaded.
        assert isinstance(response, urllib3.HTTPResponse)  # noqa: S101
        return response

    def _translate(self, exc: Exception, url: str) -> NetworkError:
        """Turn what the libraries below raise into a sentence."""
        host = _get_host(url)
        cause = _find_cause(exc)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return NetworkError(
                f"the certificate of '{host}' is not trusted: {cause.verify_message}",
                hint="install the CA that signed it (update-ca-certificates), or add --tls-verify=false",
            )
        if isinstance(exc, SSLError) or isinstance(cause, ssl.SSLError):
            return NetworkError(
                f"'{host}' does not answer to https: {_describe(cause)}",
                hint="if it speaks plain http, add --tls-verify=false",
            )
        if isinstance(cause, socket.gaierror):
            return self._unreached(
                host, f"the host of '{host}' is not known: {_describe(cause)}", "check the name and the network"
            )
        # Before ConnectTimeoutError, of which it is a kind.
        if isinstance(exc, NewConnectionError):
            reason = _describe(cause)
            if isinstance(cause, OSError) and cause.errno == errno.ECONNREFUSED:
                return self._unreached(host, f"cannot connect to '{host}': {reason}", "is the registry running there?")
            return self._unreached(host, f"cannot connect to '{host}': {reason}", "check the name and the network")
        if isinstance(exc, ConnectTimeoutError):
            return self._unreached(host, f"'{host}' does not answer", "check the name, the port and the network")
        if isinstance(exc, (ReadTimeoutError, TimeoutError)):
            return TransientError(
                f"'{host}' has been silent for {self._read_timeout_s:g} s", hint="check the network and try again"
            )
        if isinstance(exc, ValueError):
            return NetworkError(f"'{url[:200]}' is no web address: {exc}")
        return TransientError(f"the connection to '{host}' broke: {_describe(cause)}", hint="try again")

    def _unreached(self, host: str, message: str, hint: str) -> NetworkError:
        """Fail at once on first contact, when a wrong name is likelier than a bad moment; later, try again."""
        return (TransientError if host in self._reached else NetworkError)(message, hint=hint)

    def _status_error(self, url: str, response: Response) -> TransientError:
        status = f"{response.status} {http.client.responses.get(response.status, '')}".strip()
        response.close()
        if response.status == 429:
            return TransientError(
                f"'{_get_host(url)}' refuses more requests for now ({status})",
                hint="wait, or log in to get a higher limit",
            )
        return TransientError(f"'{_get_host(url)}' failed with {status}", hint="try again later")


def is_loopback(host: str) -> bool:
    """Tell whether ``host[:port]`` is this machine."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _get_origin(url: str) -> tuple[str, str, int | None]:
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    return parts.scheme, parts.hostname or "", port or {"http": 80, "https": 443}.get(parts.scheme)


def _get_host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc.rpartition("@")[2]


def _find_cause(exc: BaseException) -> BaseException:
    """Return the innermost exception: libraries wrap the one that tells something."""
    for _ in range(10):
        inner = exc.__cause__ or next((arg for arg in exc.args if isinstance(arg, BaseException)), None)
        if inner is None and isinstance(exc.__context__, (OSError, HTTPError, http.client.HTTPException)):
            inner = exc.__context__
        if inner is None:
            break
        exc = inner
    return exc


def _describe(exc: BaseException) -> str:
    text = (exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)) or type(exc).__name__
    return text[:200]


def _parse_retry_after(value: str | None) -> float | None:
    """Parse seconds or an HTTP date; None when there is neither."""
    if value is None:
        return None
    if value.isdecimal() and len(value) < 10:
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
