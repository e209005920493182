"""`Proxy`: a TCP proxy before Redis that delays, splits, cuts, half-closes, swallows, duplicates and garbles bytes."""

import asyncio
import random
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Self

from tests.worker.servers import free_port

Direction = Literal["request", "reply"]
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Weather:
    """What happens to the bytes that pass. Probabilities are those of a chunk, which is mostly a command or a reply.

    Attributes:
        delay_s: Seconds for which each chunk is held back.
        swallow: Directions whose bytes disappear while their connections stay open.
        split: Probability that a chunk arrives in two parts, with a pause between them.
        cut: Probability that a part of a chunk arrives, and then the connection is reset.
        half_close: Probability that a part of a chunk arrives, and then the end of the stream, in this direction only.
        duplicate: Probability that a chunk arrives twice.
        garble: Probability that a byte of a chunk is changed.
        directions: The directions that these probabilities are about.
    """

    delay_s: float = 0.0
    swallow: tuple[Direction, ...] = ()
    split: float = 0.0
    cut: float = 0.0
    half_close: float = 0.0
    duplicate: float = 0.0
    garble: float = 0.0
    directions: tuple[Direction, ...] = ("request", "reply")


CALM = Weather()
SILENT = Weather(swallow=("request", "reply"))


class Proxy:
    """A proxy to a port of this machine, in a thread of its own while the context is open.

    Args:
        target_port: The port of the server.
        generator: Decides what happens to each chunk.

    Attributes:
        weather: What happens to the bytes from now on, those of open connections included.
        port: The port that the proxy listens on.
        connections: Number of open connections.
    """

    def __init__(self, target_port: int, generator: random.Random | None = None):
        self.weather, self.port, self.connections = CALM, free_port(), 0
        self._target_port, self._random = target_port, generator or random.Random(0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """URL of Redis behind this proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(asyncio.start_server(self._serve, "127.0.0.1", self.port)).result()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut_all()
        self._run(self._end_tasks()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut_all(self) -> None:
        """Resets all open connections."""

        async def cut() -> None:
            for writer in self._writers:
                writer.transport.abort()

        self._run(cut()).result()

    def _run(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    @staticmethod
    async def _end_tasks() -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        writers = {writer, server_writer}
        self._writers |= writers
        self.connections += 1
        try:
            await asyncio.gather(
                self._pump("request", reader, server_writer, writers),
                self._pump("reply", server_reader, writer, writers),
            )
        except OSError:
            pass
        finally:
            self.connections -= 1
            self._writers -= writers
            for end in writers:
                end.transport.abort()

    async def _pump(
        self,
        direction: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        both_writers: set[asyncio.StreamWriter],
    ) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            weather = self.weather
            if direction in weather.swallow:
                continue
            await asyncio.sleep(weather.delay_s)
            if direction not in weather.directions:
                writer.write(chunk)
                continue
            if self._draw(weather.garble):
                chunk = self._garble(chunk)
            if self._draw(weather.cut):
                writer.write(self._first_part(chunk))
                await asyncio.sleep(0.001)
                for end in both_writers:
                    end.transport.abort()
                return
            if self._draw(weather.half_close):
                writer.write(self._first_part(chunk))
                break
            if self._draw(weather.split):
                first = self._first_part(chunk)
                writer.write(first)
                await asyncio.sleep(0.002)
                writer.write(chunk[len(first) :])
            else:
                writer.write(chunk)
            if self._draw(weather.duplicate):
                writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof() and not writer.transport.is_closing():
            writer.write_eof()

    def _draw(self, probability: float) -> bool:
        return probability > 0 and self._random.random() < probability

    def _first_part(self, chunk: bytes) -> bytes:
        return chunk[: self._random.randrange(len(chunk))]

    def _garble(self, chunk: bytes) -> bytes:
        place = self._random.randrange(len(chunk))
        return chunk[:place] + bytes([chunk[place] ^ (1 << self._random.randrange(8))]) + chunk[place + 1 :]
