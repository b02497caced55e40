-- The workers that keep house; marks these ($1), which do not, by the way.
WITH marked AS (
    UPDATE millhand.worker SET auxiliary = true WHERE id = ANY ($1::bigint[]) AND NOT auxiliary
)
SELECT id FROM millhand.worker WHERE NOT auxiliary AND id <> ALL ($1::bigint[])
