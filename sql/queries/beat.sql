-- Renews the rows of these workers ($1).
SELECT millhand.beat($1::bigint[])
