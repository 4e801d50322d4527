"""Data: manifests in (`manifests`), batches out (`dataloader`), augmentation between."""
