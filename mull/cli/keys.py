"""`mull keys`: who may use a server that others can reach."""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mull.cli.options import JsonOption
from mull.cli.terminal import note, print_json, print_table
from mull.errors import RequestError

if TYPE_CHECKING:
    from mull.serve.accounts.keys import Key
    from mull.serve.store.database import Database

keys = typer.Typer(no_args_is_help=True, help="Make, list and remove API keys.")
_NAME = re.compile(r"[\w.@-]{1,64}")
_UNITS = {"h": 1 / 24, "d": 1.0, "w": 7.0}
_MOST_TOKENS = 10**15  # every database and every page can hold it
_MOST_DAYS = 36_500  # calendars end

DatabaseOption = Annotated[
    str | None,
    typer.Option("--database", metavar="URL", help="As given to `mull up`; default MULL_HOME."),
]


@keys.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose conversations it opens.")],
    budget: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS", min=1, max=_MOST_TOKENS, help="Refused once these are spent."
        ),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="N/min", help="So many requests a minute.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="30d", help="Worth nothing after: 12h, 30d, 8w.")
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="May get, load and delete models.")
    ] = False,
    database: DatabaseOption = None,
) -> None:
    """Make a key for NAME and print it, this once: only its hash is kept.

    A second key for the same NAME opens the same conversations. NAME `local` owns those from
    before there were accounts.
    """
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"name {name[:80]!r}: letters, digits, '.', '_', '@' and '-', at most 64"
        )
    per_minute = None if rate is None else _per_minute(rate)
    days = None if expires is None else _days(expires)
    from mull.serve.accounts import keys as stored

    with _open(database) as opened, opened.write() as db:
        secret = stored.add(
            db,
            name,
            budget_tokens=budget,
            rate_per_minute=per_minute,
            days=days,
            is_admin=admin,
        )
    print(secret)
    note(f"the key of {name}: keep it now, it cannot be shown again")


@keys.command("list")
def list_keys(as_json: JsonOption = False, database: DatabaseOption = None) -> None:
    """Show every key: owner, limits, what it has spent."""
    from mull.serve.accounts import keys as stored

    with _open(database) as opened, opened.read() as db:
        listed = stored.listed(db)
    if as_json:
        print_json([_as_json(key) for key in listed])
        return
    print_table(
        ("ID", "OWNER", "KEY", "SPENT", "BUDGET", "PER MINUTE", "EXPIRES", "LAST USED", "ADMIN"),
        [
            (
                key.id,
                key.owner,
                f"mull-...{key.ending}",
                f"{key.spent_tokens:,}",
                "none" if key.budget_tokens is None else f"{key.budget_tokens:,}",
                "any" if key.rate_per_minute is None else str(key.rate_per_minute),
                "expired" if key.is_expired else _day(key.expires) or "never",
                _day(key.last_used) or "never",
                "yes" if key.is_admin else "no",
            )
            for key in listed
        ],
    )


@keys.command("rm")
def rm(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An owner, or the id of one key.")],
    data: Annotated[
        bool, typer.Option("--data", help="Delete the owner's conversations and files too.")
    ] = False,
    database: DatabaseOption = None,
) -> None:
    """Remove the keys of NAME, or one by its id; logins with them end at once."""
    from mull.serve.accounts import keys as stored

    with _open(database) as opened:
        with opened.write() as db:
            gone = stored.remove(db, name)
            if data:
                _remove_data(db, {key.owner for key in gone})
        if data:
            from mull.serve.store import erasing

            erasing.erase(opened)
    for key in gone:
        print(f"removed key {key.id} of {key.owner}")


def _remove_data(db: Any, owners: set[str]) -> None:
    from mull.serve.store import conversations, preferences

    for owner in owners:
        conversations.remove_all(db, owner)
        preferences.remove_all(db, owner)


def _open(url: str | None) -> Database:
    from mull.serve.store.database import Database

    return Database(url)


def _per_minute(text: str) -> int:
    match = re.fullmatch(r"(\d{1,9})(?:/min)?", text.strip())
    if match is None or int(match[1]) < 1:
        raise RequestError(f"--rate {text!r}: write it as 30/min")
    return int(match[1])


def _days(text: str) -> float:
    match = re.fullmatch(r"(\d{1,6})([hdw])", text.strip())
    if match is None or int(match[1]) < 1:
        raise RequestError(f"--expires {text!r}: write it as 12h, 30d or 8w")
    days = int(match[1]) * _UNITS[match[2]]
    if days > _MOST_DAYS:
        raise RequestError(f"--expires {text!r}: at most {_MOST_DAYS}d; without it, never")
    return days


def _day(microseconds: int | None) -> str | None:
    if microseconds is None:
        return None
    moment = datetime.datetime.fromtimestamp(microseconds / 1e6, datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M}"


def _as_json(key: Key) -> dict[str, Any]:
    from mull.serve.store.values import iso

    times = {
        name: None if (value := getattr(key, name)) is None else iso(value)
        for name in ("created", "expires", "last_used")
    }
    return {**vars(key), **times}
