"""The first stage: the teacher writes questions and answers about unlabelled images."""
