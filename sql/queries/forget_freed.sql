SELECT millhand.forget_freed()
