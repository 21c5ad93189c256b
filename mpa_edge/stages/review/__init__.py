"""A person reviews a random sample of the teacher's answers on a page of this machine."""
