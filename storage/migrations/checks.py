"""Changing a check of a table, on SQLite as on PostgreSQL."""

from alembic import op


def change_check(table: str, name: str, old: str, new: str) -> None:
    """Puts the condition `new` in the place of `old` in the check `name` of a table.

    SQLite cannot alter a check. Copying the table would delete what refers to it, so its
    definition is rewritten in place, which SQLite's manual allows for checks (lang_altertable,
    section 7); the number of the schema is raised, so that other connections read it again.
    """
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        op.drop_constraint(op.f(name), table, type_="check")
        op.create_check_constraint(op.f(name), table, new)
        return
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema=ON")
    connection.exec_driver_sql(
        "UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = ?",
        (old, new, table),
    )
    connection.exec_driver_sql(f"PRAGMA schema_version={version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema=OFF")
