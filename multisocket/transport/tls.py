"""``tls+tcp://host:port``: tcp with TLS, by the standard library's ``ssl``.

A listener needs a certificate. A dialer checks the listener's certificate and that it is for the host it has dialed.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping
from typing import Any

from ..address import Address
from ..descriptors import own
from ..errors import BadOption, ConnectionRefused
from ..options import Option, choice, flag, text
from . import tcp
from .interface import Connection, Listening, Transport


def _check_context(value: Any) -> ssl.SSLContext | None:
    if value is not None and not isinstance(value, ssl.SSLContext):
        raise ValueError("an ssl.SSLContext")
    return value


def _no_text(_: str) -> Any:
    raise ValueError("an object, which cannot stand in an address")


OPTIONS: Mapping[str, Option] = {
    **tcp.OPTIONS,
    "context": Option(None, _check_context, _no_text),
    "certificate": text(None),
    "key": text(None),
    "ca": text(None),
    "server_name": text(None),
    "verify": flag(True),
    "client_certificate": choice("none", "optional", "required"),
}

_CLIENT_CERTIFICATE = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def listening_context(options: Mapping[str, Any]) -> ssl.SSLContext:
    """The listener's context, of an object or of files.

    :raises BadOption: there is no certificate, or a file cannot be used.
    """
    if options["context"] is not None:
        return _given(options, ssl.PROTOCOL_TLS_CLIENT, "listen")
    if options["certificate"] is None:
        raise BadOption("who listens with TLS needs a certificate: give certificate= (and key=), or context=")
    if options["client_certificate"] != "none" and options["ca"] is None:
        raise BadOption("client_certificate needs ca=: the file with the authorities whose certificates are accepted")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, options)
    context.verify_mode = _CLIENT_CERTIFICATE[options["client_certificate"]]
    return context


def dialing_context(options: Mapping[str, Any]) -> ssl.SSLContext:
    """The dialer's context, of an object or of files.

    :raises BadOption: a file cannot be used.
    """
    if options["context"] is not None:
        return _given(options, ssl.PROTOCOL_TLS_SERVER, "dial")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if options["ca"] is None:
        context.load_default_certs()
    _load(context, options)
    if not options["verify"]:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _given(options: Mapping[str, Any], wrong: int, what: str) -> ssl.SSLContext:
    context: ssl.SSLContext = options["context"]
    if context.protocol == wrong:
        raise BadOption(f"the context given to {what} with is made for the other side: see ssl.Purpose")
    return context


def _load(context: ssl.SSLContext, options: Mapping[str, Any]) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for files in ("certificate", "ca"):
        if options[files] is None:
            continue
        try:
            if files == "ca":
                context.load_verify_locations(options["ca"])
            else:
                context.load_cert_chain(options["certificate"], options["key"])
        except (OSError, ssl.SSLError) as error:
            raise BadOption(f"{files}={options[files]!r} cannot be used: {error}") from error


class TlsConnection(Connection):
    """TLS over a tcp connection, which it takes over once that is made.

    :param server_name: dialing: what the certificate must be for. None: listening.
    """

    def __init__(self, inner: tcp.TcpConnection, context: ssl.SSLContext, server_name: str | None) -> None:
        self._inner = inner
        self._context = context
        self._server_name = server_name
        self._tls: ssl.SSLSocket | None = None
        self._is_done = False
        self._is_ending = False
        self.peer = inner.peer
        self.wants_write = inner.wants_write

    def fileno(self) -> int:
        """See ``Connection``, as of all these."""
        return self._inner.fileno() if self._tls is None else self._tls.fileno()

    def proceed(self) -> bool:
        """Connects; then shakes hands."""
        if self._is_done:
            self.wants_write = False
            return True
        if self._tls is None and not self._begin():
            return False
        assert self._tls is not None
        self.wants_write = False
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLWantWriteError:
            self.wants_write = True
            return False
        except OSError as error:
            raise ConnectionRefused(f"no TLS connection with {self.peer}: {_why(error)}") from error
        self._is_done = True
        return True

    def _begin(self) -> bool:
        if not self._inner.proceed():
            self.wants_write = self._inner.wants_write
            return False
        self.peer = self._inner.peer
        plain = self._inner.socket
        assert plain is not None
        self._tls = own(
            lambda: self._context.wrap_socket(
                plain,
                server_side=self._server_name is None,
                server_hostname=self._server_name,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=True,
            )
        )
        return True

    def read(self, most: int) -> bytes | None:
        """Decrypted bytes."""
        assert self._tls is not None
        try:
            return self._tls.recv(most)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def write(self, data: memoryview) -> int:
        """Encrypts and sends. What was refused must be offered again as it was, which the wire does."""
        assert self._tls is not None
        try:
            return self._tls.send(data)
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLWantWriteError:
            self.wants_write = True
            return 0

    def finish(self) -> bool:
        """Says good-bye, ends our side, and waits until the peer's system has confirmed all."""
        if self._tls is None:
            return True
        if not self._is_ending:
            self._is_ending = True
            with contextlib.suppress(OSError):
                self._tls.unwrap()
        return tcp.end_side(self._tls)

    def close(self) -> None:
        """Ends it."""
        if self._tls is None:
            self._inner.close()
        else:
            self._tls.close()


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    return error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)


class TlsListening(Listening):
    """Accepts with TLS."""

    def __init__(self, address: Address, options: Mapping[str, Any]) -> None:
        self._context = listening_context(options)
        self._inner = tcp.TcpListening(address, options)
        self.address = self._inner.address

    def fileno(self) -> int:
        """See ``Listening``, as of all these."""
        return self._inner.fileno()

    def accept(self) -> TlsConnection | None:
        """The next connection."""
        inner = self._inner.accept()
        return None if inner is None else TlsConnection(inner, self._context, None)

    def close(self) -> None:
        """Stops."""
        self._inner.close()


def dial(address: Address, options: Mapping[str, Any]) -> TlsConnection:
    """Begins a connection to the address's host and port."""
    context = dialing_context(options)
    name = options["server_name"] or tcp.split(address)[0]
    return TlsConnection(tcp.Tcp().dial(address, options), context, name)


class Tls(Transport):
    """See the module."""

    options = OPTIONS

    def listen(self, address: Address, options: Mapping[str, Any]) -> TlsListening:
        """Binds the port."""
        return TlsListening(address, options)

    def dial(self, address: Address, options: Mapping[str, Any]) -> TlsConnection:
        """Connects."""
        return dial(address, options)
