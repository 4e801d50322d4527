"""Data: manifests in (`prepare`), batches out (`loader`), and corpora known or made here."""
