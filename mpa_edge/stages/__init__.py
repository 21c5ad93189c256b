"""The five steps from unlabelled images to an aligned student, each a function over files in a run folder."""
