"""An OpenAI-compatible server and its web page. Needs the extra `serve`; `app.py` puts it together.

Limits stand in `settings`, models by name in `models`, access in `middleware`. `transcriptions`,
`inspect_routes` and `websocket` hold the routes; `jobs` and `batcher` do the work; `schemas` and
`api_error` word the answers; `prometheus` counts.
"""
