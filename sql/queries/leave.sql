SELECT millhand.leave($1::bigint)
