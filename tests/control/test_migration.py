"""A database of an older version, brought up to this one."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config

import edge.control
from edge.control.database import HEAD, Base, Certificate, Node, engine_of, migrated
from edge.control.nodes import revoked_certificates


def test_an_older_database_keeps_its_nodes_and_what_they_hold_counts(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    engine = engine_of(path)
    config = Config()
    config.set_main_option("script_location", str(Path(edge.control.__file__).parent / "migrations"))
    config.attributes["engine"] = engine
    command.upgrade(config, "0001")
    engine.dispose()
    with sqlite3.connect(path) as db:
        db.execute(
            "INSERT INTO nodes (id, label, group_name, state, key_sha256, created_s) VALUES ('n', 'n', 'g', 'active', 'k2', 1)"
        )
        for serial, key in (("a1", "k1"), ("a2", "k2")):
            db.execute(
                "INSERT INTO certificates (serial, node_id, key_sha256, issuer, not_before_s, not_after_s, der) "
                "VALUES (?, 'n', ?, 'i', 1, 100, x'00')",
                (serial, key),
            )
    db.close()
    database = migrated(path)
    with database.write() as session:
        node = session.get(Node, "n")
        assert node is not None and node.proven_key is None and node.proven_s is None
        assert revoked_certificates(session, 0.0) == [], "nobody is shut out by an upgrade"
        node.proven_key, node.proven_s = "k2", 50.0
        session.flush()
        assert revoked_certificates(session, 0.0) == [("i", "a1", 50.0)]
        assert session.query(Certificate).count() == 2
    database.close()
    assert HEAD == "0002"
    with sqlite3.connect(path) as db:
        for table in Base.metadata.sorted_tables:
            columns = {row[1] for row in db.execute(f"PRAGMA table_info({table.name})")}
            assert columns == {column.name for column in table.columns}, table.name
    db.close()
