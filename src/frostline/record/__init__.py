"""What a training run leaves behind, written and read.

recorder.py     Recorder: trajectories of what you choose, written while a model trains (watched.py: one such thing)
trajectory.py   values over training at bounded memory
record_file.py  the file that a Recorder writes, and reading it
run_folder.py   what a run leaves in its folder for `frostline report`
"""

from frostline.record.record_file import Recorded, read_record
from frostline.record.recorder import Recorder
from frostline.record.run_folder import Movement, Run, describe_run, read_run

__all__ = ["Movement", "Recorded", "Recorder", "Run", "describe_run", "read_record", "read_run"]
