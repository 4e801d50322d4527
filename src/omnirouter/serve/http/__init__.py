"""An OpenAI-compatible server and its web page. Needs the extra `serve`; `app.py` puts it together.

`middleware` lets requests in; `transcriptions`, `inspect_routes` and `websocket` hold the routes,
which find models and limits in `app_state`; `jobs` does the work; `schemas` words the answers;
`prometheus` counts.
"""
