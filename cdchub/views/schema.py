"""The tables of the live views, as VIEWS has them: milliseconds throughout."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS todos(
    id TEXT PRIMARY KEY, title TEXT NOT NULL, completed INTEGER DEFAULT 0,
    position INTEGER NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS todos_by_position ON todos(position);
CREATE TABLE IF NOT EXISTS users(id TEXT PRIMARY KEY, name, email UNIQUE, created_at);
CREATE TABLE IF NOT EXISTS orders(id TEXT PRIMARY KEY, user_id, total REAL, status TEXT, created_at);
CREATE TABLE IF NOT EXISTS sessions(
    token TEXT PRIMARY KEY, user_id, created_at, last_active, expires_at);
CREATE TABLE IF NOT EXISTS messages(
    id TEXT PRIMARY KEY, room TEXT, user_id TEXT, content TEXT, created_at INTEGER);
"""
