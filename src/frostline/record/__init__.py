"""The run folder: what a training run records, written to files and read again.

recorder.py      Recorder: values recorded while a model trains
watched.py       what a Recorder records under one name
trajectory.py    values over training at bounded memory
record_file.py   the file of a Recorder, written and read
run_folder.py    the other files of a run folder, for `frostline report`
"""

from frostline.record.record_file import Recorded, read_record
from frostline.record.recorder import Recorder
from frostline.record.run_folder import RowChanges, Run, describe_run, read_run

__all__ = ["Recorded", "Recorder", "RowChanges", "Run", "describe_run", "read_record", "read_run"]
