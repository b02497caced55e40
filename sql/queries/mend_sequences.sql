SELECT millhand.mend_sequences()
