"""A program that speaks TLS for a server that can't: `tls_proxy.py CERT KEY CA PORT [SAYS MEANS]`.

It asks for a client's certificate, prints the port that it listens on, and ends when it is killed.
Where the server SAYS one port it MEANS another: a Sentinel knows its Redis without TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys


async def pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, says: bytes, means: bytes
) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data.replace(says, means))
            await writer.drain()
    writer.close()


async def main(
    certificate: str, key: str, ca: str, behind: str, says: str = "-", means: str = "-"
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", int(behind))
        ports = says.encode(), means.encode()
        await asyncio.gather(pump(reader, back, *ports), pump(there, writer, *ports))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print("port", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
