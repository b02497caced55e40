-- Takes the dispatch locks of many tasks' resources ($1 exclusive, $2 shared)
-- at once, so that several dispatches in one transaction cannot deadlock with
-- those of another.
SELECT millhand.lock_places($1::text[], $2::text[])
