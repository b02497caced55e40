SELECT millhand.bring_back($1::text[])
