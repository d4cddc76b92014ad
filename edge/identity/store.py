"""Where a node's identity lies: EDGE_HOME/identity, readable by its owner alone.

    generations/000001/   key.pem cert.pem ca.pem identity.json settings.toml; perhaps bootstrap.json,
                          command_keys.pem
    current               a link to the generation in force: it alone says who the node is
    enrolling/, renewing/ a generation in the making, file by file; moved to generations/ when it is whole
    clock.json            what is known of the time
    renewal.json          how the last try to renew went

A generation never changes. What is in the making survives a crash and is gone on with, so that one key is used for one wish.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from edge.durable import locked, storage_error, tidy_drafts
from edge.effective import ENROLLED_SETTINGS
from edge.identity import applied
from edge.identity.certificates import key_pem, new_key, pem, read_pem, spki
from edge.identity.files import DRAFT, PRIVATE_FILE, Files
from edge.identity.identity import (
    ABOUT,
    BOOTSTRAP,
    SCHEMA,
    SETTINGS,
    Identity,
    IdentityDamaged,
    LastTry,
    Request,
    joined,
    read_identity,
    read_private,
)
from edge.identity.moment import Known
from edge.identity.trust import Anchors
from edge.identity.wire import Bootstrap

DIRECTORY = ENROLLED_SETTINGS.parts[0]
_REQUEST, _CLOCK, _LAST_TRY, _RESETTING = "request.json", "clock.json", "renewal.json", "resetting"
_ANNOUNCED = "announced"

Making = Literal["enrolling", "renewing"]


class Store:
    """Owner of the directory. What changes something is called under `locked`; methods raise DiskFull, StoreUnwritable."""

    def __init__(self, home: Path, files: Files | None = None) -> None:
        self.home, self.directory = home, home / DIRECTORY
        self.files = files or Files(home)
        self._generations = self.directory / "generations"
        self._current = self.directory / ENROLLED_SETTINGS.parts[1]

    # --- what there is ------------------------------------------------------------------------------------------------

    @property
    def pointer(self) -> str:
        """Which generation is in force; empty: none."""
        try:
            return os.readlink(self._current)
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise IdentityDamaged(
                f"{self._current} is not the link that it should be ({error.strerror}); enroll anew: edge enroll --force"
            ) from None

    def current(self) -> Identity | None:
        """Raises IdentityDamaged, also where others can read the key."""
        pointer = self.pointer
        return read_identity(self.directory / pointer) if pointer else None

    def known(self) -> Known:
        """What is known of the time. A file that cannot be read counts as none: it only ever adds knowledge."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Known(**json.loads((self.directory / _CLOCK).read_bytes()))
        return Known()

    def last_try(self) -> LastTry | None:
        """None if nothing is known of one."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return LastTry(**json.loads((self.directory / _LAST_TRY).read_bytes()))
        return None

    @property
    def announced(self) -> str:
        """The generation that was told of last."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (self.directory / _ANNOUNCED).read_text("ascii")
        return ""

    def request(self, making: Making) -> Request | None:
        """What is in the making; None if nothing is, or nothing that can be gone on with."""
        with contextlib.suppress(OSError, ValueError, TypeError, IdentityDamaged):
            request = Request(**json.loads((self.directory / making / _REQUEST).read_bytes()))
            read_private(self.directory / making)
            return request
        return None

    def key(self, making: Making) -> ec.EllipticCurvePrivateKey:
        """Of what is in the making."""
        return read_private(self.directory / making)

    def certificate(self, making: Making, anchors: Anchors) -> tuple[x509.Certificate, ...]:
        """What the fleet gave before a crash, if it did and this CA has signed it; else empty."""
        with contextlib.suppress(OSError, ValueError):
            chain = read_pem((self.directory / making / applied.CERTIFICATE).read_bytes())
            kept = read_pem((self.directory / making / applied.AUTHORITIES).read_bytes())
            if spki(chain[0]) == spki(self.key(making)) and any(root in kept for root in anchors.roots):
                return tuple(chain)
        return ()

    def is_whole(self, making: Making) -> bool:
        """Whether only its trial and the pointer are missing."""
        return (self.directory / making / ABOUT).exists()

    # --- changes ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes anything meanwhile. What a crash left half done is put right first. Raises StoreBusy."""
        with self._storing():
            self.home.mkdir(parents=True, exist_ok=True)
            self.files.make_directory(self.directory)
            self.files.make_directory(self._generations)
        with locked(self.directory / "lock", "this node's identity"):
            (self.directory / "lock").chmod(PRIVATE_FILE)
            with self._storing():
                self._recover()
            yield

    def recover(self) -> None:
        """Put right what a crash, or a careless copy, left half done, as far as that can be. Raises StoreBusy, DiskFull,
        StoreUnwritable."""
        if self.directory.exists():
            with self.locked():
                pass

    def _recover(self) -> None:
        """A whole generation that no pointer leads to yet was about to be put in force; older ones have served."""
        self.files.give(self.directory / "lock")
        for path in self.directory.glob(f"{DRAFT}*"):
            path.unlink()
        tidy_drafts(self.directory)
        if (self.directory / _RESETTING).exists():
            self.reset()
        if self._current.exists() and not self._current.is_symlink():  # of a copy that followed links
            self.files.remove(self._current)
        newest = max((path.name for path in self._generations.iterdir() if path.name.isdecimal()), default="")
        if newest and (not self.pointer or newest > self.pointer.rpartition("/")[2]):
            self._put_in_force(newest)
        self.drop_others()

    def begin(self, making: Making, request: Request, *, keep_key: bool) -> None:
        """A generation in the making with its key, on the disk before anybody hears of it. `keep_key`: what is there is gone
        on with."""
        place = self.directory / making
        with self._storing():
            if not keep_key:
                self.files.remove(place)
            elif (before := self.request(making)) is not None and before.token_id != request.token_id:
                self.files.remove(place / applied.CERTIFICATE)  # it was given for another token
            self.files.make_directory(place)
            if not (place / applied.KEY).exists():
                self.files.write(place / applied.KEY, key_pem(new_key()))
            self.files.write(place / _REQUEST, json.dumps(asdict(request)).encode())

    def forget(self, making: Making) -> None:
        """Give up what is in the making, with its key."""
        with self._storing():
            self.files.remove(self.directory / making)

    def keep_certificate(self, making: Making, chain: tuple[x509.Certificate, ...], anchors: Anchors) -> None:
        """What the fleet gave. The certificate comes last: with it the rest is there."""
        place = self.directory / making
        with self._storing():
            self.files.write(place / applied.AUTHORITIES, pem(anchors.all))
            self.files.write(place / applied.CERTIFICATE, pem(chain))

    def complete(
        self,
        making: Making,
        how: Literal["enrolled", "renewed"],
        fleet_url: str,
        token_id: str,
        bootstrap: Bootstrap | None,
    ) -> None:
        """The rest of the generation's files; from now on it is whole. Raises EnrollmentFailed if the bootstrap is no good."""
        place = self.directory / making
        tables = applied.settings_of(bootstrap) if bootstrap is not None else {}
        about: dict[str, Any] = {"schema": SCHEMA, "how": how, "fleet_url": fleet_url, "token_id": token_id}
        with self._storing():
            if bootstrap is not None:
                self.files.write(place / BOOTSTRAP, bootstrap.model_dump_json(indent=1).encode())
                if bootstrap.command_keys:
                    self.files.write(place / applied.COMMAND_KEYS, joined(bootstrap.command_keys))
            self.files.write(place / SETTINGS, applied.as_toml(tables))
            self.files.write(place / ABOUT, json.dumps(about).encode())

    def put_in_force(self, making: Making) -> Identity:
        """From one moment to the next this is who the node is."""
        with self._storing():
            newest = max((int(path.name) for path in self._generations.iterdir() if path.name.isdecimal()), default=0)
            name = f"{newest + 1:06}"
            self.files.move(self.directory / making, self._generations / name)
            self._put_in_force(name)
        identity = self.current()
        assert identity is not None
        return identity

    def _put_in_force(self, name: str) -> None:
        self.files.point(self._current, f"{self._generations.name}/{name}")

    def drop_others(self) -> None:
        """Only the generation in force stays."""
        name = self.pointer.rpartition("/")[2]
        with self._storing():
            for path in self._generations.iterdir():
                if path.name != name:
                    self.files.remove(path)

    def reset(self) -> None:
        """No identity from now on. A reset that was begun is ended by whoever takes the lock next."""
        with self._storing():
            self.files.write(self.directory / _RESETTING, b"")
            self.files.remove(self._current)
            for path in (self.directory / "enrolling", self.directory / "renewing", self.directory / _LAST_TRY):
                self.files.remove(path)
            for path in self._generations.iterdir():
                self.files.remove(path)
            self.files.remove(self.directory / _RESETTING)

    def remember_time(self, known: Known) -> None:
        """For the next start."""
        with self._storing():
            self.files.write(self.directory / _CLOCK, json.dumps(asdict(known)).encode())

    def remember_try(self, last: LastTry) -> None:
        """For who looks, and for the back-off."""
        with self._storing():
            self.files.write(self.directory / _LAST_TRY, json.dumps(asdict(last)).encode())

    def announce(self, name: str) -> None:
        """That generation was told of."""
        with self._storing():
            self.files.write(self.directory / _ANNOUNCED, name.encode())

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage_error(error, self.directory) from None
