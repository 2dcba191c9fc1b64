"""The command lines of the trainer: fs3-train and fs3-generate."""
