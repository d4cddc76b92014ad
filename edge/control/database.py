"""The fleet's database: tables, and transactions on them. SQLite through SQLAlchemy, changed by Alembic's migrations."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    text,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from edge.errors import ConfigurationError

HEAD = "0002"
"""The migration that this code is written for."""
_BUSY_S = 15.0


class Base(DeclarativeBase):
    """Of all tables. Times are Unix seconds."""


class Node(Base):
    """One machine's identity. Written by `edge.control.enrollment` and `edge.control.nodes`; a row is never deleted, so that no
    name is given twice."""

    __tablename__ = "nodes"
    id: Mapped[str] = mapped_column(String(63), primary_key=True)
    label: Mapped[str] = mapped_column(String(200))
    group: Mapped[str] = mapped_column("group_name", String(63))
    state: Mapped[str] = mapped_column(String(16))
    """pending, active or revoked."""
    key_sha256: Mapped[str] = mapped_column(String(64))
    """Of the public key that its last certificate is for."""
    token_id: Mapped[str | None] = mapped_column(ForeignKey("tokens.id"))
    created_s: Mapped[float]
    approved_s: Mapped[float | None]
    approved_by: Mapped[str | None] = mapped_column(String(100))
    revoked_s: Mapped[float | None]
    revoked_by: Mapped[str | None] = mapped_column(String(100))
    not_after_s: Mapped[float | None]
    """End of its last certificate."""
    proven_key: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 of the key that renewed last: only it and those that it asked for count (`edge.control.enrollment`)."""
    proven_s: Mapped[float | None]
    """When it first did."""
    __table_args__ = (
        UniqueConstraint("key_sha256", name="one_node_per_key"),
        Index("nodes_by_state", "state", "id"),
    )


class Token(Base):
    """One enrollment token; the secret only as its hash. Written by `edge.control.tokens`."""

    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    secret_sha256: Mapped[str] = mapped_column(String(64))
    group: Mapped[str] = mapped_column("group_name", String(63))
    label: Mapped[str] = mapped_column(String(200))
    approval: Mapped[bool]
    """Nodes that come with it wait until somebody lets them in."""
    uses: Mapped[int]
    created_s: Mapped[float]
    created_by: Mapped[str] = mapped_column(String(100))
    expires_s: Mapped[float]
    revoked_s: Mapped[float | None]


class TokenUse(Base):
    """Which keys a token was used with."""

    __tablename__ = "token_uses"
    token_id: Mapped[str] = mapped_column(ForeignKey("tokens.id"), primary_key=True)
    key_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"))
    used_s: Mapped[float]


class Certificate(Base):
    """Every node certificate that was signed."""

    __tablename__ = "certificates"
    serial: Mapped[str] = mapped_column(String(40), primary_key=True)
    """Hexadecimal."""
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"))
    key_sha256: Mapped[str] = mapped_column(String(64))
    parent_key: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 of the key that asked for it; None for a node's first."""
    issuer: Mapped[str] = mapped_column(String(64))
    """Key identifier of the issuing authority, in hex."""
    not_before_s: Mapped[float]
    not_after_s: Mapped[float]
    der: Mapped[bytes] = mapped_column(LargeBinary)
    __table_args__ = (
        Index("certificates_by_node", "node_id", "not_after_s"),
        Index("certificates_by_end", "not_after_s"),
    )


class NodeStatus(Base):
    """What a node told last. Written by `edge.control.registry` alone."""

    __tablename__ = "node_status"
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id"), primary_key=True)
    last_seen_s: Mapped[float]
    state: Mapped[str] = mapped_column(String(16))
    """online, draining, offline; empty while it is unknown."""
    info: Mapped[str] = mapped_column(Text)
    """JSON: version, model, machine."""
    figures: Mapped[str] = mapped_column(Text)
    """JSON: attainment, fallback rate."""


class Audit(Base):
    """Who did what. Rows are added and never changed."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at_s: Mapped[float]
    actor: Mapped[str] = mapped_column(String(100))
    action: Mapped[str] = mapped_column(String(40))
    subject: Mapped[str] = mapped_column(String(100))
    detail: Mapped[str] = mapped_column(String(400))
    __table_args__ = (Index("audit_by_subject", "subject", "id"),)


class SignIn(Base):
    """A person's session at the page; the cookie only as its hash. Written by `edge.control.sessions`."""

    __tablename__ = "sessions"
    id_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_name: Mapped[str] = mapped_column(String(100))
    key_sha256: Mapped[str] = mapped_column(String(64))
    expires_s: Mapped[float]


class Database:
    """Transactions on one file. Threads may share it."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError unless the file is there, as this version has it; `migrated` makes it so."""
        self._path = path
        _require(path)
        self._engine = engine_of(path)
        self._immediate = self._engine.execution_options(immediate=True)
        self._watch: Any = None
        self._writing = threading.Lock()
        """Threads of this process take turns by it: SQLite lets who waits sleep and try again, and some wait for seconds."""
        found = revision(self._engine)
        if found != HEAD:
            self._engine.dispose()
            raise _other_revision(path, found)

    def close(self) -> None:
        """Give it back."""
        if self._watch is not None:
            self._watch.close()
        self._engine.dispose()

    def version(self) -> int:
        """Another number after each change by another process or thread. For one thread. Raises ConfigurationError."""
        with self._worded():
            if self._watch is None:
                self._watch = self._engine.raw_connection()
            return int(self._watch.execute("PRAGMA data_version").fetchone()[0])

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent look at it. Raises ConfigurationError if it cannot be read."""
        with self._worded(), Session(self._engine) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction that holds the only right to write from its begin on; on disk when this ends without an error."""
        with (
            self._worded(),
            self._writing,
            Session(self._immediate, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextlib.contextmanager
    def _worded(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise ConfigurationError(f"{self._path} cannot be used: {cause}") from error


def engine_of(path: Path) -> Engine:
    """One connection for each thread that asks; WAL, and nothing is said to be kept before it is on disk."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins no transactions of its own; see below
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def revision(engine: Engine) -> str | None:
    """Which migration the file has seen; None if none. Raises ConfigurationError if it is no database."""
    try:
        with engine.connect() as connection:
            tables = connection.execute(text("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'")).first()
            row = connection.execute(text("SELECT version_num FROM alembic_version")).first() if tables else None
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise ConfigurationError(f"{engine.url.database} cannot be used as the fleet's database: {cause}") from None
    return None if row is None else str(row[0])


def migrated(path: Path, *, new: bool = False) -> Database:
    """The database, brought up to this version; it must be there unless it is `new`. Raises ConfigurationError."""
    if not new:
        _require(path)
    engine = engine_of(path)
    try:
        found = revision(engine)
        if found is not None and found > HEAD:
            raise _other_revision(path, found)
        if found != HEAD:
            from alembic import command  # takes a while, and is seldom needed
            from alembic.config import Config

            config = Config()
            config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
            config.attributes["engine"] = engine
            command.upgrade(config, "head")
    finally:
        engine.dispose()
    path.chmod(0o600)
    return Database(path)


def _require(path: Path) -> None:
    """SQLite would make an empty one."""
    if not path.exists():
        raise ConfigurationError(f"the fleet's database {path} is missing: restore it from a back-up")


def _other_revision(path: Path, found: str | None) -> ConfigurationError:
    if found is not None and found > HEAD:
        return ConfigurationError(f"{path} was written by a newer version of edge; upgrade this one")
    return ConfigurationError(f"{path} is of an older version, or empty; `edge fleet serve` brings it up to date")
