-- Under the settings of worker_session.sql, so after them and in a transaction of its own.
SELECT millhand.begin_session()
