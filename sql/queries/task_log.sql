SELECT log FROM millhand.task WHERE id = $1::bigint
