-- Where the applied migrations are written down; run before each of them.
-- IF NOT EXISTS warns on every run but the first.
SET LOCAL client_min_messages = warning;
CREATE SCHEMA IF NOT EXISTS millhand;
CREATE TABLE IF NOT EXISTS millhand.migration (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
