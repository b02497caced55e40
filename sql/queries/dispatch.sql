SELECT millhand.dispatch($1::text, $2::jsonb, $3::text[], $4::text[])
