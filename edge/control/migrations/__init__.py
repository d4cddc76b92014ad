"""How the database came to look as it does. Alembic runs these; `edge.control.database.migrated` calls it."""
