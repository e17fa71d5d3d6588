"""Facts that change after training, and each way of telling a model."""
