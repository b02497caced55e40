SELECT millhand.tell_metrics()
