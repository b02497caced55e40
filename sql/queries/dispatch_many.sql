SELECT * FROM millhand.dispatch_many($1::jsonb)
