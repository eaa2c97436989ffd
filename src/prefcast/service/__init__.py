"""The HTTP service (extra `serve`): it calls a Forecaster and holds no scoring logic.

limits.py    what a server takes, in numbers
schema.py    the documents that go in and out
reading.py   bodies -> requests -> pairs
batching.py  work of many clients -> batches on one thread; knows nothing of forecasts
engine.py    batches -> forecasts, explanations, scores
answers.py   forecasts -> documents
guard.py     around everything: token, host, size, time, security headers, the access log
metrics.py   what is counted
app.py       the routes
docs.py      the OpenAPI document as a page, without a script
server.py    sockets, half-open connections, shutdown
page/        static files
"""
