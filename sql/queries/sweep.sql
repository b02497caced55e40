SELECT millhand.sweep()
