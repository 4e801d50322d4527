"""Looking at a trained model: error rates per test set, and what its routers do."""
