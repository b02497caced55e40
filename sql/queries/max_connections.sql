-- How many connections the server takes from those who are no superusers.
SELECT current_setting('max_connections')::integer
       - current_setting('superuser_reserved_connections')::integer
