"""A driver that trains on a cluster: `python -m tests.support.training_on_cluster <master> <folder>`.

The call is read from the folder, and what the ranks return is written there.
"""

import pickle
import sys
from pathlib import Path

from resources.delta.spark_session import spark_session
from resources.training import TrainingProcesses
from tests.support.rank_programs import train_and_average

master, folder = sys.argv[1:]
session = spark_session(master, scratch=folder)
call = pickle.loads(Path(folder, "call.pickle").read_bytes())
ranks = TrainingProcesses(processes=2).run(session.spark_session, "horovod", train_and_average, *call)
Path(folder, "answer.pickle").write_bytes(pickle.dumps(ranks))
