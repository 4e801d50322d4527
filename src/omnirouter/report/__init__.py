"""Programs that train or time whole models, and the pages they write."""
