SELECT millhand.cancel($1::bigint)
