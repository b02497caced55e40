SELECT millhand.beat($1::text)
