"""Small proxies of our own between a broker and what it calls: they slow, cut, and speak bad TLS.

They run in the suite's own event loop. Each forwards bytes and knows nothing of what they mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Proxy:
    """Listens on a free port of loopback and forwards to another port there."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        """tls: what is spoken with who connects; the other side is plain."""
        self.to = port
        self.tls = tls
        self.delay = 0.0
        """Seconds that each piece of data waits, in each direction."""
        self.nonsense = False
        """Answer with what no protocol is, at once, and end."""
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(
            self._accepted, "127.0.0.1", self.port, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stops listening and cuts every connection: who connects is refused."""
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def again(self, tls: ssl.SSLContext | None) -> None:
        """Closes, and listens on the same port with this instead."""
        await self.close()
        self.tls = tls
        await self.open()

    def cut(self) -> None:
        """Resets what is connected."""
        for writer in self._writers:
            writer.transport.abort()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError, ssl.SSLError):
                await self._served(reader, writer)
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _served(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.nonsense:
            writer.write(b"*1\r\n$-7\r\n\x00\x16\x03 this is no protocol\r\n\r\n")
            return await writer.drain()
        back, forth = await asyncio.open_connection("127.0.0.1", self.to)
        self._writers.add(forth)
        try:
            there = asyncio.create_task(self._pump(reader, forth))
            here = asyncio.create_task(self._pump(back, writer))
            await asyncio.wait({there, here}, return_when=asyncio.FIRST_COMPLETED)
            for task in (there, here):
                task.cancel()
            await asyncio.gather(there, here, return_exceptions=True)
        finally:
            self._writers.discard(forth)
            forth.transport.abort()
        return None

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.delay:
                await asyncio.sleep(self.delay)
            writer.write(data)
            await writer.drain()


class Authority:
    """A certificate authority of our own, with one leaf at a time."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"chaos {name}")])
        made = self._builder(self._subject, self._key, days=2)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        made = made.add_extension(usage, critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        certificate = made.add_extension(identifier, critical=False).sign(
            self._key, hashes.SHA256()
        )
        self.path = directory / f"{name}-ca.pem"
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def leaf(self, address: str = "127.0.0.1", days: int = 2) -> ssl.SSLContext:
        """A server's context for this address; negative days have ended."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
        who = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        made = self._builder(name, key, days).add_extension(who, critical=False)
        public = self._key.public_key()
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(public)
        certificate = made.add_extension(issuer, critical=False).sign(self._key, hashes.SHA256())
        path = self._directory / f"{self._name}-leaf.pem"
        pem = serialization.Encoding.PEM
        secret = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(certificate.public_bytes(pem) + secret)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        start = now - datetime.timedelta(days=10)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(now + datetime.timedelta(days=days))
        )
