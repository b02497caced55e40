SELECT millhand.mend_names()
