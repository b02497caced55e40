"""Dispatch a task in your own transaction, and wait for it: psycopg 3.

JSON needs Jsonb, a list of strings is text[] as it is.
"""

import os
import time

import psycopg
from psycopg.types.json import Jsonb

with psycopg.connect(os.environ["MILLHAND_DATABASE_URL"]) as connection:
    # Your own statements here; all is committed at the end of the block.
    (task,) = connection.execute(
        "SELECT millhand.dispatch(%s, %s, exclusive => %s, shared => %s)",
        ["greet", Jsonb({"who": "Ada"}), ["door"], ["house"]],
    ).fetchone()

with psycopg.connect(os.environ["MILLHAND_DATABASE_URL"], autocommit=True) as connection:
    while True:
        state, result, error = connection.execute(
            "SELECT state, result, error FROM millhand.task WHERE id = %s", [task]
        ).fetchone()
        if state in ("completed", "failed", "canceled"):
            break
        time.sleep(0.1)
print(state, result if state == "completed" else error)
