"""The HTTP service (extra `serve`) and its client (extra `remote`). It calls a Forecaster and has no scoring logic.

A body is read (reading.py), batched with others (batching.py), forecast (forecasting.py) and answered (replies.py). A
file of rows is read (rows.py) in a process of its own (apart.py). The routes are in app.py, the checks around every route in
guard.py, and server.py runs it all. rewards/ has the functions that trainers call in their own process.
"""
