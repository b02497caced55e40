-- The timeline that this server is on, if it tells: see functions/17_begin_session.sql.
SELECT timeline FROM millhand.server
