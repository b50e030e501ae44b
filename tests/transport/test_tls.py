"""TLS: who is believed to be whom; and that all else is as over tcp."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest

import multisocket as ms
from conftest import DEADLINE, wait_until
from multisocket.transport import network

from .conftest import Files

Make = Callable[..., ms.Socket]


def listen(sock: ms.Socket, files: Files, host: str = "localhost", **options: Any) -> str:
    given = {"certificate": files.certificate, **options}
    return sock.listen(f"tls+tcp://{host}:0", **given).address


def ask(client: ms.Socket, server: ms.Socket) -> None:
    client.send(b"question")
    server.send_to(server.recv_msg(DEADLINE).source, b"answer")
    assert client.recv(DEADLINE) == b"answer"


def test_files(make_socket: Make, files: Files) -> None:
    server, client = make_socket(), make_socket()
    client.dial(listen(server, files), ca=files.ca)
    ask(client, server)


def test_options_in_the_address(make_socket: Make, files: Files) -> None:
    server, client = make_socket(), make_socket()
    address = server.listen(f"tls+tcp://localhost:0?certificate={files.certificate}").address
    client.connect(f"{address}?ca={files.ca}#dial")
    ask(client, server)


def test_contexts(make_socket: Make, files: Files) -> None:
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(files.certificate)
    theirs = ssl.create_default_context(cafile=files.ca)
    server, client = make_socket(), make_socket()
    address = server.listen("tls+tcp://localhost:0", context=ours).address
    client.dial(address, context=theirs)
    ask(client, server)
    with pytest.raises(ms.BadOption, match="other side"):
        client.dial(address, context=ours)


@pytest.mark.parametrize("why", ["unknown authority", "wrong name", "expired"])
def test_who_is_not_believed(make_socket: Make, files: Files, why: str) -> None:
    server, client = make_socket(), make_socket()
    address = listen(server, files, **({"certificate": files.expired} if why == "expired" else {}))
    ca = files.other_ca if why == "unknown authority" else files.ca
    name = "example.com" if why == "wrong name" else None
    with pytest.raises(ms.ConnectionRefused, match="certificate is not accepted"):
        client.dial(address, ca=ca, server_name=name)
    with pytest.raises(ms.ConnectionRefused):  # not of an authority of this system
        client.dial(address)
    assert not client.pipes
    client.dial(address, verify=False)  # as asked
    ask(client, server)


def test_the_name_can_be_given(make_socket: Make, files: Files) -> None:
    server, client = make_socket(), make_socket()
    address = listen(server, files, "127.0.0.1")  # the certificate is for localhost
    with pytest.raises(ms.ConnectionRefused, match="certificate"):
        client.dial(address, ca=files.ca)
    client.dial(address, ca=files.ca, server_name="localhost")
    ask(client, server)


def test_mutual(make_socket: Make, files: Files, caplog: pytest.LogCaptureFixture) -> None:
    server, stranger, client = make_socket(), make_socket(), make_socket()
    address = listen(server, files, ca=files.ca, client_certificate="required")
    with caplog.at_level(logging.INFO, "multisocket"):
        # With TLS 1.3 the dialer hears of it later.
        stranger.dial(address, ca=files.ca, dial_async=True, reconnect=False)
        wait_until(lambda: "PEER_DID_NOT_RETURN_A_CERTIFICATE" in caplog.text, "the reason is logged")
    assert not server.pipes
    client.dial(address, ca=files.ca, certificate=files.certificate)
    ask(client, server)


def test_bad_options(make_socket: Make, files: Files) -> None:
    sock = make_socket()
    with pytest.raises(ms.BadOption, match="needs a certificate"):
        sock.listen("tls+tcp://localhost:0")
    with pytest.raises(ms.BadOption, match="needs ca="):
        listen(sock, files, client_certificate="required")
    with pytest.raises(ms.BadOption, match="cannot be used"):
        listen(sock, files, certificate="/nothing/there.pem")
    with pytest.raises(ms.BadOption, match="SSLContext"):
        listen(sock, files, context="me")
    with pytest.raises(ms.BadOption, match="one of none, optional, required"):
        listen(sock, files, client_certificate="perhaps")


def test_who_does_not_speak_tls(
    make_socket: Make, files: Files, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = make_socket(), make_socket()
    address = listen(server, files)
    client.dial(address, ca=files.ca)
    monkeypatch.setattr(network, "HANDSHAKE_TIMEOUT", 0.3)
    port = int(address.rpartition(":")[2])
    with caplog.at_level(logging.INFO, "multisocket"):
        with socket.create_connection(("localhost", port)) as one:
            one.sendall(b"GET / HTTP/1.0\r\n\r\n")
            wait_until(lambda: "came to nothing: no TLS connection" in caplog.text, "the reason is logged")
        with socket.create_connection(("localhost", port)) as one:
            one.sendall(b"\x16\x03\x01")  # the beginning of a handshake, and then silence
            wait_until(lambda: "no connection with" in caplog.text, "its time is up")
    ask(client, server)


def test_a_dialer_that_meets_no_tls(make_socket: Make, files: Files) -> None:
    plain, client = make_socket(), make_socket()
    address = plain.listen("tcp://localhost:0").address
    with pytest.raises((ms.ConnectionRefused, ms.Timeout)):
        client.dial(f"tls+{address}", ca=files.ca)
