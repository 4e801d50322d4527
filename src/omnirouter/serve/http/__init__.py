"""An OpenAI-compatible server and its web page. Needs the extra `serve`; `app.py` puts it together.

`settings` what it may do, `models` what it has, `gate` who may come in, `engine` and `batcher` the
work, `transcriptions`, `looking` and `live` what is asked, `answers`, `errors` and `measures` what
is said.
"""
