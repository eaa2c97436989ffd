"""The HTTP service (extra `serve`) and its client (extra `remote`). It calls a Forecaster and has no scoring logic.

limits.py        the bounds of a server
schema.py        the documents that go in and out
reading.py       bodies -> requests -> pairs
batching.py      items of many clients -> batches on one thread; independent of forecasts
forecasting.py   batches -> forecasts, explanations, scores
replies.py       forecasts -> documents
refusals.py      the one form of every answer that is not 200
guard.py         around every route: token, host, size, time, security headers, the access log
metrics.py       the counters
openapi.py       the OpenAPI document
docs.html.jinja  the OpenAPI document as a page without scripts
app.py           the routes
server.py        sockets, half-open connections, shutdown
page/            static files
client.py        asks a server from Python
"""
