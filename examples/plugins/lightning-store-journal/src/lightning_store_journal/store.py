"""A store that writes down every change, with its time, and reads it all again when it is opened."""

import json
import time
from pathlib import Path
from typing import Any

from lightning_core import InMemoryLightningStore, types
from lightning_core.errors import StoreUnavailableError
from lightning_core.store import StoreCapabilities


class JournalStore(InMemoryLightningStore):
    capabilities = StoreCapabilities(durable=True)

    def __init__(self, path: str, *, clock: Any = time.time) -> None:
        super().__init__(clock=clock)
        self.path = Path(path)
        try:
            # A process that was killed while it wrote has left half a line, of which nobody was told.
            lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
            self.restore(getattr(types, kind)(**values) for _, kind, values in map(json.loads, lines))
            self._file = self.path.open("ab", buffering=0)
            self._file.truncate(sum(len(line) + 1 for line in lines))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise StoreUnavailableError(f"{path} cannot be opened as a journal: {error}") from error

    def journal(self, record: Any) -> None:
        line = json.dumps([time.time(), type(record).__name__, record.model_dump()])
        self._file.write(line.encode() + b"\n")

    async def close(self) -> None:
        await super().close()
        self._file.close()
