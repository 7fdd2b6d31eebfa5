"""What lightning-core reads: the settings and the component."""

from pydantic import BaseModel, Field

from lightning_core import Component, hookimpl


class JournalConfig(BaseModel, extra="forbid"):
    path: str = Field(default="journal.jsonl", description="The file; it is made if it does not exist.")


def make_journal(path: str):
    from .store import JournalStore

    return JournalStore(path)


def from_url(url: str) -> dict[str, str]:
    return {"path": url.removeprefix("journal:///")}


@hookimpl
def lightning_stores():
    summary = "A journal: when, what, and the record itself, one line each."
    return [Component("journal", make_journal, JournalConfig, from_url, summary, api_version=1)]
