"""What the garbage collector looks at once a model is loaded, and when it finds one that is gone."""

import subprocess
import sys

ASK = """\
import gc, weakref
from mlimg.runtime.server.memory import settle

class Model: pass

model = Model()
model.itself = model
alive = weakref.ref(model)
settle()
print(len(gc.get_objects()), gc.get_freeze_count())
del model
gc.collect()
print(int(alive() is not None))
settle()
print(int(alive() is not None))
"""


def test_what_was_loaded_is_looked_at_when_a_model_came_or_went_and_not_in_between() -> None:
    told = subprocess.run([sys.executable, "-c", ASK], check=True, capture_output=True, text=True).stdout.split()
    looked_at, kept, before, after = map(int, told)
    assert looked_at < 500 < kept
    assert (before, after) == (1, 0)
