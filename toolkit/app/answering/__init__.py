"""Answers: the request, the engine that generates answers, and the numbers of an answer."""
