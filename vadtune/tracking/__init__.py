"""MLflow: one experiment per search name, one parent run per search, one child run per trial.

``writer`` logs a search to a spool file on disk (``spool``, whose lines are ``entries``), and ``delivery`` sends the
spool to the store in a background thread, with the ``runs`` of the search; ``sync`` does so later. ``store_errors``
tells lines that the store rejects, which are kept in ``rejected``, from a store that is away. ``queries`` reads
searches and trials back, ``run_log`` from run folders; ``table_rows`` turns them into table rows. May import the
packages before it in the order of imports; no other package imports mlflow.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
# Notice an absent server within seconds instead of MLflow's four minutes; deliveries are retried anyway.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# Otherwise MLflow prints the address of each run that ends to stdout, including a password in it.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
