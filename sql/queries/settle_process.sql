SELECT millhand.settle_process($1::text)
